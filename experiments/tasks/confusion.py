"""Which classes are taken for which, and whether scores say how often they are right."""

import numpy as np

from experiments.plots.text_tables import comma_separated

BINS = 15  # of confidence, as Guo et al. (2017) have them


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Returns the number of examples ``[J, J]`` of each class (row) with each prediction (column).

    Args:
      labels, predictions: int ``[N]``.
      classes: J.
    """
    places = labels.astype(np.int64) * classes + predictions
    return np.bincount(places, minlength=classes**2).reshape(classes, classes)


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    r"""Returns the expected calibration error, from 0 to 1.

    .. math:: \sum_b \frac{n_b}{N} |\mathrm{accuracy}_b - \mathrm{confidence}_b|

    over :data:`BINS` bins of equal width of the confidence, each without its lower edge. Guo,
    Pleiss, Sun & Weinberger, "On calibration of modern neural networks" (2017), equation 3.

    Args:
      confidence: the largest score of each example, in [0, 1], ``[N]``.
      correct: whether it is that of the label, ``[N]``.
    """
    bins = np.clip(np.ceil(np.float64(confidence) * BINS) - 1, 0, BINS - 1).astype(np.int64)
    gaps = np.bincount(bins, np.float64(correct) - np.float64(confidence), BINS)
    return float(np.sum(abs(gaps)) / len(bins))


def summary_fields(labels: np.ndarray, values: dict, class_names: tuple[str, ...]) -> dict:
    """Returns fields of summary.json: errors by class in percent, and the calibration error.

    Args:
      labels: of the test set, ``[N]``.
      values: what the evaluation says of it; nothing is returned where it has no ``prediction``.
      class_names: J names.
    """
    if "prediction" not in values:
        return {}
    matrix = confusion_matrix(labels, values["prediction"], len(class_names))
    shares = 1 - np.diag(matrix) / np.maximum(matrix.sum(axis=1), 1)
    errors = {
        name: round(100 * float(share), 4) if count else None
        for name, share, count in zip(class_names, shares, matrix.sum(axis=1), strict=True)
    }
    calibration = calibration_error(values["confidence"], values["accuracy"] > 0)
    return {"test_error_by_class": errors, "calibration_error": round(calibration, 4)}


def report(summary: dict, most: int = 10) -> list[str]:
    """Returns lines for the printed table: the classes with the largest errors, calibration."""
    if "calibration_error" not in summary:
        return []
    known = {n: e for n, e in summary["test_error_by_class"].items() if e is not None}
    worst = sorted(known.items(), key=lambda pair: -pair[1])[:most]
    return [
        "test error by class: " + ", ".join(f"{name} {error:.2f}%" for name, error in worst),
        f"expected calibration error of the largest score: {summary['calibration_error']:.4f}",
    ]


def to_csv(matrix: np.ndarray, class_names: tuple[str, ...]) -> str:
    """Returns a confusion matrix as CSV, with the labels in the first column."""
    lines = [[n, *map(str, row)] for n, row in zip(class_names, matrix.tolist(), strict=True)]
    return comma_separated(["label", *class_names], lines)
