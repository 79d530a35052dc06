"""The report of a run: report.html, with tables, all figures and the settings."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.config import names_of
from experiments.data.image_listing import is_image_files
from experiments.files import write_text
from experiments.plots.html_report import Picture, Table, html_report
from experiments.tasks import figures
from experiments.tasks.base import Setup

HIDDEN = ("command", "test_correct")  # in the table of results
SPLITS = ("validation", "test")
# The figures by name, in the order of the report. Others come after them.
CAPTIONS = {
    "contact_sheet": (
        "Test images that are hard",
        "The wrong ones and the least certain of the right ones, each beside its reconstruction, "
        "with its class and the two largest class scores.",
    ),
    "confusion_matrix": (
        "Confusion matrix",
        "The number of test images of each class (row) that were given each class (column). Errors "
        "are coloured.",
    ),
    "training_curves": (
        "Training",
        "The losses of training batches and the validation error over the epochs.",
    ),
    "reconstructions": (
        "Reconstructions",
        "Test images above what the decoder makes of one class capsule.",
    ),
    "perturbations": (
        "Perturbations",
        "What the decoder makes of a class capsule as one number of its pose is changed.",
    ),
}


def wanted(setup: Setup) -> bool:
    """Returns whether a run has a report: by ``--report``, or if it is on image files."""
    report = setup.config.report
    return report == "yes" or (report == "auto" and is_image_files(setup.dataset.name))


def by_class(
    labels: np.ndarray, correct: np.ndarray, class_names: Sequence[str]
) -> list[tuple[str, int, int, float]]:
    """Returns the name, images, errors and error in percent of each class with images.

    Args:
      labels: ``[N]``, or sets ``[N, J]``: an image counts in each of its classes.
      correct: booleans ``[N]``.
      class_names: of J classes.
    """
    rows = []
    for k, name in enumerate(class_names):
        own = correct[labels == k if labels.ndim == 1 else labels[:, k] > 0]
        if len(own):
            wrong = int((~own).sum())
            rows.append((name, len(own), wrong, round(100 * wrong / len(own), 2)))
    return rows


def write_report(
    setup: Setup, summary: dict, values: dict[str, np.ndarray], workdir: Path, paths: list[Path]
) -> Path:
    """Writes report.html in the folder of a run, and returns its path.

    Args:
      setup: of the run. summary: of it.
      values: what the evaluation says of the test set.
      workdir: its folder.
      paths: of its figures.
    """
    lists = {name: value for name, value in summary.items() if isinstance(value, dict | list)}
    plain = {n: v for n, v in summary.items() if n not in lists and n not in HIDDEN}
    labels, places = summary.get("labels") or {}, names_of(setup.config, "path")
    # A report may be sent to others, whom the folders of this machine do not concern.
    stored = dataclasses.asdict(setup.config)
    settings = [(name, value) for name, value in stored.items() if name not in places]
    tables = [
        Table("Errors", ("", "error in %", "images"), _errors(summary)),
        Table("Test images by class", ("class", "images", "errors", "%"), _rows(setup, values)),
        Table(
            "Labels",
            ("label", "images", "missed", "false", "average precision"),
            [(name, *one.values()) for name, one in labels.items()],
        ),
        Table("Files that can't be read", ("file", "reason"), setup.dataset.skipped),
        Table("Results", ("", ""), list(plain.items())),
        Table("Settings", ("flag", "value"), settings),
        Table("Versions", ("", ""), list(summary["versions"].items())),
    ]
    drawn = _pictures({path.stem: path for path in paths if path.suffix == ".png"})
    title = figures.title_of(setup)
    path = workdir / "report.html"
    write_text(path, html_report(title, summary["command"], tables, drawn))
    return path


def _pictures(paths):
    first = [name for name in CAPTIONS if name in paths]
    for name in first + sorted(paths.keys() - CAPTIONS.keys()):
        title = name.replace("_", " ").capitalize()
        yield Picture(*CAPTIONS.get(name, (title, "")), paths[name].read_bytes())


def _rows(setup, values):
    labels = setup.pipeline.held_out("test")[1]
    if setup.pipeline.labels != 1:
        return []
    return by_class(labels, values["accuracy"] > 0, setup.dataset.class_names)


def _errors(summary):
    rows = [(name, summary[f"{name}_error"], summary[f"{name}_examples"]) for name in SPLITS]
    return [row for row in rows if row[1] is not None]
