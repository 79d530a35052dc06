"""The end of a run: test error, summary.json, figures and a table."""

import base64
import functools
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from capsjax.models import CapsNetConfig
from capsjax.train import TrainState
from experiments.config import command
from experiments.data.errors import first_line
from experiments.tasks import figures, label_sets
from experiments.tasks.base import Setup
from experiments.tasks.hard_examples import contact_sheet
from experiments.training import run_report
from experiments.training.results import peak_memory_mb, versions
from experiments.training.workdir import write_json
from kernels.cli import commit


def write_summary(
    setup: Setup,
    state: TrainState,
    workdir: Path,
    rows: list,
    evaluate: Callable,
    seconds: float,
    together: int = 1,
) -> dict:
    """Evaluates the test set once, writes summary.json and the figures, and prints the table.

    A figure or a report that fails is named on standard error, and the run is complete without it.

    Args:
      setup: of the run.
      state: trained.
      workdir: folder of the run.
      rows: of metrics.jsonl.
      evaluate: see :mod:`experiments.training.evaluate`.
      seconds: wall time of this process so far.
      together: number of runs that were trained at once with it, itself included.

    Returns:
      The summary.
    """
    c, d = setup.config, setup.dataset
    values = evaluate(state.variables, *setup.pipeline.held_out("test"))
    correct = values["accuracy"] > 0
    training = [row for row in rows if "images_per_second" in row]
    validation = [row for row in rows if "validation_error" in row] or [{}]
    # The first chunk of a run holds the compilation: it counts where it is the only one.
    rates = [row["images_per_second"] for row in training[1:] or training]
    summary = {
        "program": c.program,
        "command": command(c, setup.program.defaults),
        "dataset": d.name,
        "dataset_source": d.source.split(" from ")[0],
        "model": c.model,
        "recipe": c.recipe,
        **capsule_fields(setup),
        "seed": c.seed,
        "parameters": setup.parameters,
        "steps": int(state.step),
        "epochs": training[-1]["epoch"],
        "batch_size": c.batch_size,
        "dtype": c.dtype,
        "train_examples": len(d.train_labels),
        "validation_examples": len(d.validation_labels),
        "validation_error": validation[-1].get("validation_error"),
        "validation_loss": validation[-1].get("validation_loss"),
        "test_examples": len(correct),
        "test_errors": int((~correct).sum()),
        "test_error": round(100 * float((~correct).mean()), 4),
        "test_loss": float(values["loss"].mean()),
        "test_correct": pack(correct),
        **(label_sets if d.multi_label else setup.task).summary_fields(setup, values),
        **setup.task.extra_evaluation(setup, functools.partial(evaluate, state.variables), rows),
        "images_per_second": float(np.median(rates)),
        "training_seconds": rows[-1]["seconds"],
        "wall_seconds": round(seconds, 1),
        "peak_memory_mb": _reported_peak(workdir, int(state.step))
        or peak_memory_mb(setup.devices[0]),
        "accelerator": setup.devices[0].platform,
        "device_kind": setup.devices[0].device_kind,
        "num_devices": len(setup.devices),
        "parallel": c.parallel,
        "together": together,
        "versions": versions(),
        "commit": commit(),
    }
    write_json(workdir / "summary.json", summary)
    parts = figures.of_finished_run(setup, state.variables, rows, values)
    if run_report.wanted(setup):
        parts.append(lambda: contact_sheet(setup, state.variables, values))
    _print_table(setup, summary, values, workdir, parts)
    return summary


def _print_table(
    setup: Setup, summary: dict, values: dict, workdir: Path, parts: list[figures.Part]
) -> None:
    """Plots the figures and prints the table, and names what fails: the run is complete."""
    parts = [*parts, lambda: setup.task.summary_figures(setup, summary)]
    paths, failures = figures.save_possible(parts, workdir / "figures")
    try:
        report = list(setup.task.report(setup, summary))
        if run_report.wanted(setup):
            report += run_report.class_lines(setup, values)
            path = run_report.write_report(setup, summary, values, workdir, paths)
            report.append(f"{'report':12}{path}")
    except Exception as error:  # of any kind, as in figures
        report = []
        failures.append(f"report: {type(error).__name__}: {first_line(error)}")
    for failure in failures:
        print(
            f"{failure}; the run is complete, and python -m experiments.figures --run={workdir} "
            "plots its figures again",
            file=sys.stderr,
        )
    print(summary_table(summary, report, workdir, paths))


def capsule_fields(setup: Setup) -> dict:
    """Returns what a summary says of capsules; None for networks without capsules."""
    m, c = setup.model_config, setup.config
    names = ("routing", "routing_iterations", "routing_implementation", "votes", "squash", "loss")
    names += ("depth", "reconstruction")
    if not isinstance(m, CapsNetConfig):
        return dict.fromkeys(names)
    values = (m.routing, m.make_routing().passes, c.routing_implementation, m.votes)
    values += (m.primary_squash, c.loss, 1 + len(m.capsule_layers), m.decoder is not None)
    return dict(zip(names, values, strict=True))


def _reported_peak(workdir: Path, step: int) -> int | None:
    """The peak memory that an earlier summary of the same step reports, if there is one.

    A process that only repeats a summary has not trained, and its memory says nothing.
    """
    path = workdir / "summary.json"
    earlier = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return earlier["peak_memory_mb"] if earlier.get("steps") == step else None


def summary_table(summary: dict, report: Iterable[str], workdir: Path, paths: list[Path]) -> str:
    """Returns the last lines that a run prints."""
    lines = [f"{'':12}{'error':>8}{'images':>9}"]
    for name in ("validation", "test"):
        error, examples = summary[f"{name}_error"], summary[f"{name}_examples"]
        if error is not None:
            lines.append(f"{name:12}{error:>7.2f}%{examples:>9,}")
    lines.append(
        f"{summary['epochs']:g} epochs, {summary['steps']:,} steps, "
        f"{summary['images_per_second']:.0f} images/s, "
        f"{summary['training_seconds']:.0f} s of training"
    )
    lines += report
    lines += [f"{'summary':12}{workdir / 'summary.json'}"]
    lines += [f"{'figure':12}{path}" for path in paths]
    return "\n".join(lines)


def pack(correct: np.ndarray) -> str:
    """Returns booleans ``[N]`` as text: one bit each, in base64."""
    return base64.b64encode(np.packbits(correct)).decode()


def unpack(text: str, count: int) -> np.ndarray:
    """Returns the ``count`` booleans that :func:`pack` has packed."""
    packed = np.frombuffer(base64.b64decode(text), np.uint8)
    return np.unpackbits(packed, count=count).astype(bool)
