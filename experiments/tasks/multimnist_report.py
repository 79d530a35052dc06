"""The report of MultiMNIST: errors by overlap, segmentation, Figure 5 of the paper."""

from collections.abc import Iterator

import numpy as np

from experiments import plots
from experiments.tasks import figures
from experiments.tasks.base import Figure, Setup
from experiments.tasks.errors_in_bins import error_by_bin, percent

EDGES = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of bins of overlap
RIGHT, WRONG, ABSENT = 8, 2, 4  # examples in the figure; wrong ones take two columns


def summary_fields(setup: Setup, values: dict[str, np.ndarray]) -> dict:
    """Returns further fields of summary.json.

    Args:
      setup: of the run.
      values: of each test pair, see :func:`experiments.tasks.multimnist.pair_objective`.
    """
    found = {
        "shift": setup.config.shift,
        "digit_accuracy": percent(values["digits"].mean()),
        "either_accuracy": percent(values["either"].mean()),
        "digit_error_by_class": error_by_class(setup, values),
        "overlap": round(float(values["overlap"].mean()), 4),
        "test_error_by_overlap": error_by_bin(
            values["accuracy"], values["overlap"], EDGES, ("overlap", "pairs")
        ),
        "segmentation_accuracy": None,
        "shared_ink_accuracy": None,
        "reconstruction_mse": None,
    }
    if "squared_error" in values:
        for name, part in (("segmentation_accuracy", "single"), ("shared_ink_accuracy", "shared")):
            right, pixels = (values[f"{part}_{what}"].sum() for what in ("right", "pixels"))
            found[name] = percent(right / max(pixels, 1))
        found["reconstruction_mse"] = round(float(values["squared_error"].mean()), 6)
    return found


def error_by_class(setup: Setup, values: dict[str, np.ndarray]) -> dict[str, float | None]:
    """Returns the percentage of the test digits of each class that are not found, by its name."""
    labels = setup.pipeline.held_out("test")[1].ravel()
    missed = ~np.stack([values["found_first"], values["found_second"]], axis=1).ravel()
    errors = {}
    for n, name in enumerate(setup.dataset.class_names):
        own = missed[labels == n]
        errors[name] = percent(own.mean()) if len(own) else None
    return errors


def of_pairs(setup: Setup, variables, values: dict) -> Iterator[Figure]:
    """Yields Figure 5 of the paper."""
    correct = values["accuracy"] > 0
    right, wrong = np.flatnonzero(correct), np.flatnonzero(~correct)[:WRONG]
    # A class that is not there: other correct examples than those shown as such, if there are.
    absent = right[RIGHT : RIGHT + ABSENT] if len(right) >= RIGHT + ABSENT else right[:ABSENT]
    right = right[:RIGHT]
    rows = np.concatenate([right, np.repeat(wrong, 2), absent])
    digits = setup.pipeline.held_out("test")[0][rows]
    images, labels, scores, pose = figures.encode(setup, variables, rows)
    predictions = np.array([matched(s, y) for s, y in zip(scores, labels, strict=True)])
    targets = labels.copy()
    middle = len(right) + 2 * len(wrong)
    targets[len(right) + 1 : middle : 2] = predictions[len(right) + 1 : middle : 2]
    targets[middle:, 1] = [least(s, y) for s, y in zip(scores[middle:], labels[middle:])]
    drawn = [figures.decode(setup, variables, pose, targets[:, k]) for k in (0, 1)]
    names = setup.dataset.class_names
    columns = [
        plots.PairColumn(
            images[n],
            digits[n].astype(np.float32) / 255,
            np.stack([one[n] for one in drawn]),
            *(tuple(names[k] for k in pair[n]) for pair in (labels, predictions, targets)),
        )
        for n in range(len(rows))
    ]
    groups = [
        ("correct", "right", columns[: len(right)]),
        ("wrong: label decoded, then prediction", "wrong", columns[len(right) : middle]),
        ("second class is not there", "absent", columns[middle:]),
    ]
    groups = [group for group in groups if group[2]]
    yield "segmentation", plots.plot_segmentation, (groups, figures.title_of(setup))


def matched(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the two classes of the largest scores, a correct one at the place of its label."""
    first, second = np.argsort(-scores, kind="stable")[:2]
    swap = first == labels[1] or second == labels[0]
    return np.array([second, first] if swap else [first, second])


def least(scores: np.ndarray, labels: np.ndarray) -> int:
    """Returns the class with the smallest score among those that are not in the image."""
    absent = np.setdiff1d(np.arange(len(scores)), labels)
    return int(absent[np.argmin(scores[absent])])
