"""The end of a run: test error, summary.json, figures and a table."""

import functools
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from capsjax.models import CapsNetConfig
from capsjax.train import TrainState
from experiments.config import UserError, command
from experiments.data.errors import first_line
from experiments.files import BadFile, read_json, write_json, write_text
from experiments.files.bits import pack
from experiments.files.forms import SUMMARY
from experiments.tasks import confusion, figures, label_sets
from experiments.tasks.base import Setup
from experiments.tasks.hard_examples import contact_sheet
from experiments.training import collectives, processes, run_report, selection, shards
from experiments.training.progress import diverged
from experiments.training.results import peak_memory_mb, versions
from kernels.cli import commit

# What a summary says of the process that trained.
OF_TRAINING = ("wall_seconds", "peak_memory_mb", "accelerator", "device_kind", "num_devices")
OF_TRAINING += ("num_processes", "together", "versions", "commit")


def write_summary(
    setup: Setup,
    state: TrainState,
    workdir: Path,
    rows: list,
    evaluate: Callable,
    seconds: float,
    together: int = 1,
    reported: Any = None,
    trained: bool = True,
) -> dict:
    """Evaluates the test set once, writes summary.json and the figures, and prints the table.

    Several processes divide the evaluation, and the first one alone writes.

    A figure or a report that fails is named on standard error, and the run is complete without it.

    Args:
      setup: of the run.
      state: trained.
      workdir: folder of the run.
      rows: of metrics.jsonl.
      evaluate: see :mod:`experiments.training.evaluate`.
      seconds: wall time of this process so far.
      together: number of runs that were trained at once with it, itself included.
      reported: the variables that it reports, if not those of its state.
      trained: whether this process has trained, and does not only report a finished run again.

    Returns:
      The summary.
    """
    c, d = setup.config, setup.dataset
    variables = state.variables if reported is None else reported
    images, labels = setup.pipeline.held_out("test")
    values = evaluate(variables, images, labels)
    training = [row for row in rows if "images_per_second" in row]
    # The first chunk of a run holds the compilation: it counts where it is the only one.
    rates = [row["images_per_second"] for row in training[1:] or training]
    summary = {
        "program": c.program,
        "command": command(c, setup.program.defaults),
        "dataset": d.name,
        "dataset_source": d.source.split(" from ")[0],
        "data_checksum": d.checksum,
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
        **selection.summary_fields(c, rows, int(state.step)),
        **test_fields(setup, labels, values),
        **({} if reported is None else last_weights(setup, state, evaluate)),
        **(label_sets if d.multi_label else setup.task).summary_fields(setup, values),
        **setup.task.extra_evaluation(setup, functools.partial(evaluate, variables), rows),
        "images_per_second": float(np.median(rates)),
        "training_seconds": rows[-1]["seconds"],
        "wall_seconds": round(seconds, 1),
        "peak_memory_mb": peak_memory_mb(processes.own(setup.devices)[0]),
        "accelerator": setup.devices[0].platform,
        "device_kind": setup.devices[0].device_kind,
        "num_devices": len(setup.devices),
        "num_processes": processes.count(),
        "parallel": c.parallel,
        "together": together,
        "versions": versions(),
        "commit": commit(),
        **({} if trained else _said_before(workdir, int(state.step))),
    }
    if shards.divides_capsules(setup):
        variables = collectives.to_host(variables)
    if processes.is_first():
        _write(setup, summary, labels, values, variables, rows, workdir)
    return summary


def _write(setup, summary, labels, values, variables, rows, workdir) -> None:
    """Writes all that :func:`write_summary` has found out, and prints it; in one process alone."""
    _write_confusion(setup, labels, values, workdir)
    write_json(workdir / "summary.json", summary)
    setup, variables = shards.undivided(setup), collectives.local(variables)
    parts = figures.of_finished_run(setup, variables, rows, values)
    if run_report.wanted(setup):
        parts.append(lambda: contact_sheet(setup, variables, values))
    _print_table(setup, summary, values, workdir, parts)


def _print_table(
    setup: Setup, summary: dict, values: dict, workdir: Path, parts: list[figures.Part]
) -> None:
    """Plots the figures and prints the table, and names what fails: the run is complete."""
    parts = [*parts, lambda: setup.task.summary_figures(setup, summary)]
    paths, failures = figures.save_possible(parts, workdir / "figures")
    try:
        report = list(setup.task.report(setup, summary))
        if run_report.wanted(setup):
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


def test_fields(setup: Setup, labels: np.ndarray, values: dict) -> dict:
    """Returns what a summary says of the test set: errors, loss, classes, calibration.

    Args:
      setup: of the run.
      labels: of the test set.
      values: what the evaluation says of it, arrays ``[N]``.
    """
    correct, loss = values["accuracy"] > 0, float(values["loss"].mean())
    if not np.isfinite(loss):
        raise UserError(diverged("the loss of test images is not finite after the last step"))
    return {
        "test_examples": len(correct),
        "test_errors": int((~correct).sum()),
        "test_error": round(100 * float((~correct).mean()), 4),
        "test_loss": loss,
        "test_correct": pack(correct),
        **confusion.summary_fields(labels, values, setup.dataset.class_names),
    }


def _write_confusion(setup: Setup, labels: np.ndarray, values: dict, workdir: Path) -> None:
    names = setup.dataset.class_names
    if "prediction" in values:
        matrix = confusion.confusion_matrix(labels, values["prediction"], len(names))
        write_text(workdir / "confusion_matrix.csv", confusion.to_csv(matrix, names))


def last_weights(setup: Setup, state: TrainState, evaluate: Callable) -> dict:
    """Returns what a summary says of the weights after the last step, where it reports others."""
    values = evaluate(state.variables, *setup.pipeline.held_out("test"))
    return {
        "test_error_last": round(100 * (1 - float(values["accuracy"].mean())), 4),
        "test_loss_last": float(values["loss"].mean()),
    }


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


def _said_before(workdir: Path, step: int) -> dict:
    """What an earlier summary of the same step says of the process that trained, if there is one.

    A process that only repeats a summary has not trained, and its memory says nothing.
    """
    try:
        earlier = read_json(workdir / "summary.json", SUMMARY)
    except BadFile:  # it is about to be written
        return {}
    again = earlier.get("steps") == step
    return {name: earlier[name] for name in OF_TRAINING if again and name in earlier}


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
    if "test_error_last" in summary:
        errors = (summary.get("validation_error_last"), summary["test_error_last"])
        last = " / ".join("-" if error is None else f"{error:.2f}%" for error in errors)
        lines += [f"weights {summary['weights']}; the last ones have {last} error"]
    lines += confusion.report(summary)
    lines += report
    lines += [f"{'summary':12}{workdir / 'summary.json'}"]
    lines += [f"{'figure':12}{path}" for path in paths]
    return "\n".join(lines)
