"""Figures of a task."""

import numpy as np

from experiments.tasks import figures


def test_stereo_pairs_are_shown_side_by_side():
    pair = np.arange(24).reshape(1, 3, 4, 2)
    want = np.concatenate([pair[..., 0], pair[..., 1]], axis=2)
    np.testing.assert_array_equal(figures.side_by_side(pair)[..., 0], want)
    np.testing.assert_array_equal(figures.side_by_side(pair[..., :1]), pair[..., :1])
