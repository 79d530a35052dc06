"""The figure of segmented digits."""

import numpy as np
import pytest

from experiments.plots import segmentation as segmentation_plot


def column(kind, n=3):
    rng = np.random.default_rng(n)
    one = rng.uniform(size=(12, 10, 1))
    two = rng.uniform(size=(2, 12, 10, 1))
    return segmentation_plot.PairColumn(one, two, two, ("3", "8"), ("3", "7"), ("3", kind))


def test_two_colours():
    pair = np.array([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 1.0, 0.0]]).reshape(2, 1, 4, 1)
    (row,) = segmentation_plot.two_colours(pair)
    np.testing.assert_allclose(row, [[1, 0.42, 0], [0, 0.58, 1], [1, 1, 1], [0, 0, 0]])


@pytest.mark.parametrize(
    "counts, lines", [((8, 4, 4), 2), ((2, 2, 2), 1), ((8, 0, 8), 2), ((1, 0, 0), 1)]
)
def test_figure(counts, lines, tmp_path):
    kinds = ("right", "wrong", "absent")
    groups = [(kind, kind, [column("4")] * n) for kind, n in zip(kinds, counts, strict=True) if n]
    figure = segmentation_plot._segmentation_figure(groups, "title")
    (axes,) = figure.axes
    assert len(axes.images) == 3 * sum(counts)
    assert sum(text.get_text() == "input" for text in axes.texts) == lines
    captions = [text.get_text() for text in axes.texts]
    assert captions.count("3  8\n3  7\n3  4") == sum(counts)
    segmentation_plot.plot_segmentation(tmp_path / "a" / "b.png", groups)
    assert (tmp_path / "a" / "b.png").stat().st_size > 1000
