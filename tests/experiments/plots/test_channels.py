"""Images of any number of channels, as they are drawn."""

import numpy as np
import pytest

from experiments.plots import drawable, note_of_channels
from experiments.plots.channels import side_by_side

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("channels, width, last", [(1, 4, 1), (2, 8, 1), (3, 4, 3), (5, 4, 3)])
def test_all_channels_can_be_drawn(channels, width, last):
    images = RNG.uniform(size=(2, 7, 3, 4, channels))
    shown = drawable(channels, lambda: images[0])
    for some in (images, images[0], images[0, 0]):
        assert shown(some).shape == (*some.shape[:-2], width, last)
    assert shown(images).min() >= 0 and shown(images).max() <= 1
    assert bool(note_of_channels(channels)) == (channels not in (1, 3))
    for flat in (np.zeros((3, 4, 5, channels)), np.ones((1, 4, 5, channels))):
        assert np.isfinite(drawable(channels, lambda flat=flat: flat)(flat)).all()


def test_two_channels_are_side_by_side():
    pair = np.arange(24).reshape(1, 3, 4, 2)
    want = np.concatenate([pair[..., 0], pair[..., 1]], axis=2)
    np.testing.assert_array_equal(side_by_side(pair)[..., 0], want)


def test_colours_are_the_principal_components():
    """Three sources of known directions and sizes are red, green and blue, in their order."""
    directions = np.linalg.qr(RNG.normal(size=(24, 24)))[0][:, :3]
    sources = RNG.uniform(-1, 1, (6, 20, 20, 3)) * [3.0, 2.0, 1.0]
    shown = drawable(24, lambda: 0.5 + sources @ directions.T)
    colours = shown(0.5 + sources @ directions.T).reshape(-1, 3)
    correlation = np.corrcoef(colours.T, sources.reshape(-1, 3).T)[:3, 3:]
    np.testing.assert_allclose(abs(correlation), np.eye(3), atol=0.08)
    # Each is stretched to the whole range.
    assert (np.quantile(colours, 0.02, axis=0) < 0.05).all()
    assert (np.quantile(colours, 0.98, axis=0) > 0.95).all()
    # Bright where the channel that counts most in it is bright.
    brighter = shown(0.5 + np.eye(24)[abs(directions).argmax(axis=0)])
    assert (np.diag(brighter) > shown(np.full(24, 0.5))).all()
