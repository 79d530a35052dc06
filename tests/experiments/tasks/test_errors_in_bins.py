"""Errors apart for what is easy and what is hard."""

import numpy as np

from experiments.tasks.errors_in_bins import error_by_bin


def test_errors_by_overlap():
    accuracy = np.array([1, 0, 1, 0, 0, 1.0])
    overlap = np.array([0.1, 0.5, 0.59, 0.95, 1.0, 0.95])
    edges = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    assert error_by_bin(accuracy, overlap, edges, ("overlap", "pairs")) == [
        {"overlap": [0.0, 0.5], "pairs": 1, "error": 0.0},
        {"overlap": [0.5, 0.6], "pairs": 2, "error": 50.0},
        {"overlap": [0.9, 1.0], "pairs": 3, "error": 66.6667},
    ]


def test_no_example_is_above_the_last_bin():
    rows = error_by_bin(
        np.array([1.0, 0]), np.array([7.0, 30.0]), (0, 5, 20), ("distance", "images")
    )
    assert rows == [{"distance": [5, 20], "images": 2, "error": 50.0}]
