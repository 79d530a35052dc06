"""Test images turned, sheared and scaled: a further column of studies that ask for it.

The error is measured once a run, from its last checkpoint, and is a line of the ledger.
"""

from pathlib import Path

from experiments.analysis import saved_run
from experiments.data import affnist_images
from experiments.sweeps import ledger
from experiments.sweeps.plan import PlannedRun
from experiments.sweeps.studies import Study
from experiments.training.evaluate import make_evaluate

HEADING = "affine test error, %"


def measure(
    study: Study, done: list[PlannedRun], entries: dict[str, dict], book: Path
) -> tuple[dict[str, dict], list[str]]:
    """The column by key of the run, and what a reader should know of it.

    Args:
      study: nothing is measured unless it has ``affine``. done: runs of it.
      entries: of the ledger. book: the ledger that gets what is measured.
    """
    if not study.affine:
        return {}, []
    column, absent = {}, 0
    for run in (run for run in done if "summary" in entries.get(run.key, {})):
        key = f"{run.key} # affine"
        if key not in entries and not (run.workdir / "checkpoints").exists():
            absent += 1  # on another machine
            continue
        if key not in entries:
            entries[key] = {"key": key, "summary": {"affine_error": error_of(run)}}
            ledger.append(book, entries[key])
        column[run.key] = {HEADING: entries[key]["summary"]["affine_error"]}
    if absent:
        return {}, [f"No column '{HEADING}': {absent} runs have no checkpoint on this machine."]
    ranges = ", ".join(
        f"{n} {low:g} to {high:g}"
        for n, (low, high) in affnist_images.TRANSFORMATION_RANGES.items()
    )
    return column, [f"Affine: every test image once, {ranges}, shifted so that all ink is seen."]


def error_of(run: PlannedRun) -> float:
    """Error in percent over transformed test images, of the last checkpoint of a run."""
    here = {name: getattr(run.config, name) for name in ("accelerator", "data_dir", "cache_dir")}
    opened = saved_run.open_run(str(run.workdir), **here, examples=True)
    images, labels = opened.setup.pipeline.held_out("test")
    moved = affnist_images.transform_images(images)
    values = make_evaluate(opened.setup)(opened.params, moved, labels)
    return round(100 * float(1 - values["accuracy"].mean()), 4)
