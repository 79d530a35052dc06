"""The error on rotated, sheared and scaled test images, an extra column of some studies.

It is measured once for each run, from its last checkpoint, and is a line of the ledger.
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
    study: Study, runs: list[PlannedRun], entries: dict[str, dict], ledger_path: Path
) -> tuple[dict[str, dict], list[str]]:
    """Returns the column by key of the run, and notes for readers.

    Args:
      study: nothing is measured unless it has ``affine``.
      runs: of the study.
      entries: of the ledger.
      ledger_path: the ledger to which measurements are added.
    """
    if not study.affine:
        return {}, []
    column, without_checkpoint = {}, 0
    for run in (run for run in runs if "summary" in entries.get(run.key, {})):
        key = f"{run.key}{ledger.MEASURED}affine"
        if key not in entries and not (run.workdir / "checkpoints").exists():
            without_checkpoint += 1  # it is on another machine
            continue
        if key not in entries:
            data = entries[run.key]["summary"].get("data_checksum", "")
            summary = {"affine_error": error_of(run), "data_checksum": data}
            entries[key] = {"key": key, "summary": summary}
            ledger.append(ledger_path, entries[key])
        column[run.key] = {HEADING: entries[key]["summary"]["affine_error"]}
    if without_checkpoint:
        reason = f"{without_checkpoint} runs have no checkpoint on this machine."
        return {}, [f"No column '{HEADING}': {reason}"]
    ranges = ", ".join(
        f"{n} {low:g} to {high:g}"
        for n, (low, high) in affnist_images.TRANSFORMATION_RANGES.items()
    )
    return column, [f"Affine: every test image once, {ranges}, shifted so that all ink is seen."]


def error_of(run: PlannedRun) -> float:
    """Returns the error in percent of the last checkpoint on transformed test images."""
    here = {name: getattr(run.config, name) for name in ("accelerator", "data_dir", "cache_dir")}
    opened = saved_run.open_run(str(run.workdir), **here, examples=True)
    images, labels = opened.setup.pipeline.held_out("test")
    transformed = affnist_images.transform_images(images)
    values = make_evaluate(opened.setup)(opened.variables, transformed, labels)
    return round(100 * float(1 - values["accuracy"].mean()), 4)
