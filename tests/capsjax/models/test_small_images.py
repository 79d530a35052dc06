"""Networks for images that are smaller than the kernels of a preset allow."""

import dataclasses

import jax
import numpy as np
import pytest
from small_networks import KEY, TINY

from capsjax import PRESETS, CapsNetConfig, create_model
from capsjax.models import fit_image

CAPSNETS = [name for name, config in PRESETS.items() if isinstance(config, CapsNetConfig)]


# By the kernels and strides of the presets, where it is not 17.
SMALLEST = {
    "capsnet_backbone": 1,
    "capsnet_backbone_224": 33,
    "capsnet_cifar10": 1,
    "capsnet_deep": 27,
    "capsnet_efficient": 27,
    "capsnet_efficient_multimnist": 29,
    "capsnet_efficient_smallnorb": 47,
    "capsnet_gritzman": 13,
    "capsnet_m5": 28,
}


def grids(config, side):
    """Returns the sides of the outputs of all layers with windows, by the text of their loops."""
    found = []
    for kernel, stride, padded in config.windows:
        places = range(0, side, stride) if padded else range(0, side - kernel + 1, stride)
        side = len(places)
        found.append(side)
    return found


@pytest.mark.parametrize("name", CAPSNETS)
def test_every_preset_has_a_network_for_every_size(name):
    for side in range(4, 40):
        config = fit_image(PRESETS[name], (side, side + 3, 2))
        assert config.image_shape == (side, side + 3, 2) and min(grids(config, side)) >= 1
        assert grids(config, side)[len(config.convs) + len(config.trunk)] == config.primary_grid[0]
        # No pixel is left out between two windows.
        assert all(w.kernel >= w.stride for w in config.windows)


@pytest.mark.parametrize("name", CAPSNETS)
def test_networks_that_fit_stay_as_they_are(name):
    smallest = SMALLEST.get(name, 17)
    for side in (smallest, smallest + 1, 64):
        shape = (side, side, 3)
        assert fit_image(PRESETS[name], shape) == dataclasses.replace(
            PRESETS[name], image_shape=shape
        )
    if smallest > 1:
        smaller = fit_image(PRESETS[name], (smallest - 1, 40, 3))
        assert smaller.windows != PRESETS[name].windows


@pytest.mark.parametrize(
    "name, side, windows",
    [
        ("capsnet_mnist", 8, [(3, 1), (3, 2)]),
        ("capsnet_mnist", 16, [(5, 1), (5, 2)]),
        ("capsnet_deep", 16, [(3, 1), (3, 2), (3, 1), (3, 1), (2, 1)]),
        ("capsnet_deep", 8, [(3, 1), (3, 1), (2, 1), (2, 1), (2, 1)]),
        ("capsnet_efficient", 26, [(5, 1), (3, 1), (3, 1), (3, 2), (8, 1)]),
        ("capsnet_matrix_small", 8, [(3, 1), (1, 1), (3, 1), (3, 1)]),
    ],
)
def test_kernels_by_hand(name, side, windows):
    """Saved runs hold the image size alone: another choice would open another network."""
    config = fit_image(PRESETS[name], (side, side + 1, 1))
    assert [(w.kernel, w.stride) for w in config.windows] == windows


@pytest.mark.parametrize("name", ["capsnet_tiny", "capsnet_matrix_small", "capsnet_efficient"])
def test_small_networks_can_be_computed(name):
    for shape in [(8, 8, 1), (9, 12, 32), (128, 64, 3)]:
        model = create_model(fit_image(dataclasses.replace(PRESETS[name], num_classes=2), shape))
        params = jax.eval_shape(model.init, KEY)
        x = jax.ShapeDtypeStruct((4, *shape), np.float32)
        out = jax.eval_shape(model.apply, params, x)
        assert out.scores.shape == (4, 2)
        if name != "capsnet_matrix_small":
            assert out.reconstruction.shape == x.shape


# Bug: with padded convolutions the strides before capsule layers were not counted.
def test_smallest_image_of_padded_strides():
    changes = {"padding": "SAME", "conv_stride": 2, "capsule_layers": ((2, 3, 1),)}
    config = dataclasses.replace(TINY, image_shape=(32, 32, 2), primary_stride=2, **changes)
    with pytest.raises(ValueError, match="smallest image is 9x9"):
        dataclasses.replace(config, image_shape=(8, 9, 2))
    assert dataclasses.replace(config, image_shape=(9, 9, 2)).primary_grid == (3, 3)
