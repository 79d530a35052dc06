"""Figures of classified images."""

import numpy as np
import pytest
from figure_helpers import assert_legible

from experiments.plots import (
    page,
    predictions,
)


def test_predictions_are_legible_and_show_all_three_images():
    grey, color = np.full((9, 30, 1), 0.5), np.full((40, 20, 3), 0.5)
    examples = [
        predictions.Example(grey, grey, grey, "a" * 90, "3 0.812, then 8 0.101", True),
        predictions.Example(color, grey, None, "b.png", "none: 3 0.2, then 8 0.1", False),
        predictions.Example(grey, color, color, "c.png", "truck 0.9, then car 0.1", True),
    ]
    figure = predictions._predictions_figure(examples, "A title")
    assert_legible(figure)
    assert len(figure.axes[0].images) == 8
    for image in figure.axes[0].images:
        high, wide = image.get_array().shape[:2]
        extent = image.get_window_extent()
        assert extent.height / extent.width == pytest.approx(high / wide, rel=1e-3)
    (red,) = [text for text in figure.axes[0].texts if text.get_color() == page.RED]
    assert red.get_text().startswith("none")


@pytest.mark.parametrize("channels, width", [(2, 60), (5, 30)])
def test_images_of_other_numbers_of_channels_are_drawn(channels, width):
    image = np.random.default_rng(0).uniform(size=(9, 30, channels))
    example = predictions.Example(image, image, image, "a.png,b.png", "3 0.8, then 8 0.1", True)
    figure = predictions._predictions_figure([example] * 2)
    assert_legible(figure)
    shapes = {image.get_array().shape[:2] for image in figure.axes[0].images}
    assert len(figure.axes[0].images) == 6 and shapes == {(9, width)}
