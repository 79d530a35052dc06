"""What the summary of a run on pairs of digits reports."""

import numpy as np
import pytest

from experiments.tasks import multimnist_report


def test_errors_by_overlap():
    accuracy = np.array([1, 0, 1, 0, 0, 1.0])
    rows = multimnist_report.error_by_overlap(accuracy, np.array([0.1, 0.5, 0.59, 0.95, 1.0, 0.95]))
    assert rows == [
        {"overlap": [0.0, 0.5], "pairs": 1, "error": 0.0},
        {"overlap": [0.5, 0.6], "pairs": 2, "error": 50.0},
        {"overlap": [0.9, 1.0], "pairs": 3, "error": 66.6667},
    ]


@pytest.mark.parametrize(
    "scores, labels, want",
    [
        ([0.1, 0.9, 0.8, 0.2], [2, 1], [2, 1]),
        ([0.1, 0.9, 0.8, 0.2], [1, 2], [1, 2]),
        ([0.1, 0.9, 0.8, 0.2], [2, 3], [2, 1]),
        ([0.1, 0.9, 0.8, 0.2], [3, 2], [1, 2]),
        ([0.1, 0.9, 0.8, 0.2], [0, 1], [2, 1]),
        ([0.1, 0.9, 0.8, 0.2], [0, 3], [1, 2]),
    ],
)
def test_predictions_are_matched_to_their_labels(scores, labels, want):
    assert multimnist_report.matched(np.array(scores), np.array(labels)).tolist() == want


def test_the_absent_class_has_the_smallest_score():
    assert multimnist_report.least(np.array([0.1, 0.9, 0.3, 0.2]), np.array([0, 1])) == 3
