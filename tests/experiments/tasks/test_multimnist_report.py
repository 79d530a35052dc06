"""What the summary of a run on pairs of digits reports."""

import numpy as np
import pytest

from experiments.tasks import multimnist_report


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
