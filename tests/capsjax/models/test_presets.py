"""Presets: networks of the papers by name, and their sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import KEY

from capsjax import (
    PRESETS,
    CapsNetConfig,
    CNNConfig,
    count_parameters,
    create_model,
    preset,
)


@pytest.mark.parametrize("name", PRESETS)
def test_a_batch_may_have_no_images(name):
    model, config = create_model(preset(name)), preset(name)
    variables = jax.eval_shape(model.init, KEY)
    found = jax.eval_shape(model.apply, variables, jnp.zeros((0, *config.image_shape)))
    assert found.scores.shape == (0, config.num_classes)


@pytest.mark.parametrize("name", ["capsnet_tiny", "cnn_tiny", "capsnet_hvc"])
def test_images_of_whole_numbers_are_refused_under_jit_too(name):
    model, config = create_model(preset(name)), preset(name)
    variables = jax.eval_shape(model.init, KEY)
    with pytest.raises(TypeError, match="floats in .*, not uint8: divide by 255"):
        jax.eval_shape(model.apply, variables, jnp.zeros((2, *config.image_shape), jnp.uint8))


@pytest.mark.parametrize(
    "config, parameters",
    [
        (preset("capsnet_mnist", routing_bias=True), 8_215_728),
        (preset("capsnet_mnist"), 8_215_568),
        (preset("capsnet_mnist", routing_bias=True, decoder=None), 6_804_384),
        (preset("capsnet_mnist", decoder=None), 6_804_224),
        (preset("capsnet_multimnist", routing_bias=True), 11_361_968),
        (preset("cnn_mnist"), 35_445_522),
        (preset("cnn_multimnist"), 24_563_978),
        (preset("capsnet_affnist", routing_bias=True), 13_475_808),
        (preset("cnn_affnist"), 13_486_617),
        (preset("cnn_smallnorb"), 9_326_477),
        (preset("capsnet_efficient", decoder=None), 161_824),
        (preset("capsnet_efficient_multimnist", decoder=None), 154_656),
        (preset("capsnet_efficient_smallnorb"), 151_664),
        (preset("capsnet_matrix"), 316_650),  # "310K" in the paper
        (preset("capsnet_matrix_small"), 68_618),  # "68K" in the paper
        (preset("capsnet_hvc"), 1_514_187),
        (preset("capsnet_hvc", merge="learned"), 1_514_190),
    ],
    ids=str,
)
def test_published_parameter_counts(config, parameters):
    shapes = jax.eval_shape(create_model(config).init, KEY)  # allocates nothing
    assert count_parameters(shapes) == parameters
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))


DECODER = (160 * 128 + 128) + (128 * 256 + 256) + (256 * 784 + 784)


@pytest.mark.parametrize(
    "name, parameters",
    [
        (
            "capsnet_small",
            (9 * 9 * 64 + 64)
            + (9 * 9 * 64 * 64 + 64)
            + (6 * 6 * 8) * 10 * 16 * 8  # W
            + DECODER,
        ),
        (
            "capsnet_deep",
            (9 * 9 * 64 + 64)
            + (9 * 9 * 64 * 64 + 64)
            + (3 * 3 * 8) * 8 * 16 * 8
            + (3 * 3 * 8) * 8 * 16 * 16
            + (2 * 2 * 8) * 8 * 16 * 16
            + 8 * 10 * 16 * 16  # one position is left
            + DECODER,
        ),
        (
            "capsnet_efficient",
            (5 * 5 * 32 + 32)
            + (3 * 3 * 32 * 64 + 64)
            + (3 * 3 * 64 * 64 + 64)
            + (3 * 3 * 64 * 128 + 128)
            + 2 * (32 + 64 + 64 + 128)  # scales and offsets of the normalisations
            + (9 * 9 * 128 + 128)  # depthwise
            + 16 * 10 * 16 * 8
            + 16 * 10  # beta
            + (160 * 512 + 512)
            + (512 * 1024 + 1024)
            + (1024 * 784 + 784),
        ),
        (
            "capsnet_matrix",
            (5 * 5 * 2 * 32 + 32)
            + 32 * 32 * (16 + 1)  # poses and activations
            + 2 * (3 * 3 * 32) * 32 * 4 * 4
            + 32 * 5 * 4 * 4  # positions share them
            + 2 * (32 + 32 + 5),  # beta_u and beta_a
        ),
        (
            "capsnet_gritzman",
            (5 * 5 * 64 + 64)
            + 8 * (16 + 1) * (64 + 1)  # poses and activations
            + (3 * 3 * 8) * 16 * 4 * 4
            + (3 * 3 * 16) * 16 * 4 * 4
            + 16 * 5 * 4 * 4
            + 2 * (16 + 16 + 5),
        ),
        (
            "capsnet_vb",
            5 * 5 * 2 * 64
            + 2 * 64  # scale and offset of the normalisation
            + 8 * (16 + 1) * 64
            + 2 * (8 + 8)  # of poses and activations
            + (3 * 3 * 8) * 16 * 4 * 4
            + (3 * 3 * 16) * 16 * 4 * 4
            + 16 * 5 * 4 * 4
            + 2 * (16 + 16 + 5),
        ),
        (
            "capsnet_m5",
            5 * 5 * (1 * 32 + 32 * 64 + 64 * 96 + 96 * 128 + 128 * 160)
            + 2 * (32 + 64 + 96 + 128 + 160)
            + (8 * 8 * 160 + 160)  # depthwise
            + 20 * 10 * 16 * 8
            + 20 * 10,  # beta
        ),
        (
            "capsnet_m5_hvc",
            5 * 5 * (1 * 32 + 32 * 64 + 64 * 96 + 96 * 128 + 128 * 160)
            + 2 * (32 + 64 + 96 + 128 + 160)
            + 8 * 8 * 10 * 160
            + 2 * 160
            + 2,
        ),
        (
            "capsnet_backbone_224",
            (7 * 7 * 3 * 64 + 3 * 64)  # a bias, a scale and an offset of each channel
            + (2 * 9 * 64 * 64 + 64 * 64 + 3 * 3 * 64)  # with a way around
            + (2 * 9 * 64 * 64 + 2 * 3 * 64)
            + (9 * 64 * 128 + 9 * 128 * 128 + 64 * 128 + 3 * 3 * 128)
            + (2 * 9 * 128 * 128 + 2 * 3 * 128)
            + (9 * 128 * 256 + 9 * 256 * 256 + 128 * 256 + 3 * 3 * 256)
            + (2 * 9 * 256 * 256 + 2 * 3 * 256)
            + (9 * 256 * 256 + 256)  # primary capsules, 32 x 8
            + (9 * 32) * 32 * 16 * 8
            + (12 * 12 * 32) * 1000 * 16 * 16,
        ),
        (
            "cnn_small",
            (9 * 9 * 128 + 128)
            + (5 * 5 * 128 * 64 + 64)
            + (7 * 7 * 64 * 256 + 256)
            + (256 * 10 + 10),
        ),
        (
            "cnn_mnist_small",
            (5 * 5 * 32 + 32)
            + (5 * 5 * 32 * 32 + 32)
            + (5 * 5 * 32 * 16 + 16)
            + (28 * 28 * 16 * 41 + 41)
            + (41 * 24 + 24)
            + (24 * 10 + 10),
        ),
    ],
)
def test_parameter_counts_by_hand(name, parameters):
    assert count_parameters(jax.eval_shape(create_model(preset(name)).init, KEY)) == parameters


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_a_network(name):
    for dtype in ("float32", "bfloat16"):
        config = preset(name, dtype=dtype)
        model = create_model(config)
        params = jax.eval_shape(model.init, KEY)
        assert {p.dtype for p in jax.tree.leaves(params)} == {np.dtype("float32")}
        x = jax.ShapeDtypeStruct((3, *config.image_shape), jnp.float32)
        out = jax.eval_shape(model.apply, params, x)
        assert out.scores.shape == (3, config.num_classes) and out.scores.dtype == jnp.float32
        if isinstance(config, CapsNetConfig):
            assert out.pose.shape == (3, config.num_classes, config.class_pose)
            drawn = x.shape if config.decoder is not None else None
            assert getattr(out.reconstruction, "shape", None) == drawn
            without = "backbone_224 efficient_smallnorb matrix matrix_small gritzman vb m5".split()
            assert (drawn is None) == (name.removeprefix("capsnet_") in without)
        else:
            assert out.pose is None and out.reconstruction is None


def test_number_of_primary_capsules():
    assert PRESETS["capsnet_mnist"].input_capsules == 1152  # 6 x 6 x 32
    assert PRESETS["capsnet_multimnist"].input_capsules == 3200  # 10 x 10 x 32
    assert preset("capsnet_mnist", image_shape=(40, 28, 1)).input_capsules == 12 * 6 * 32
    for name in ("efficient", "efficient_multimnist", "efficient_smallnorb"):
        assert PRESETS[f"capsnet_{name}"].input_capsules == 16  # 1 x 1
    assert PRESETS["capsnet_matrix"].primary_grid == (14, 14)
    assert preset("capsnet_deep", image_shape=(30, 28, 1)).primary_grid == (7, 6)


def test_invalid_presets_are_rejected():
    with pytest.raises(ValueError, match="capsnet_mnist, .*cnn_tiny, not 'alexnet'"):
        preset("alexnet")
    with pytest.raises(TypeError, match="depth"):
        preset("capsnet_mnist", depth=3)
    with pytest.raises(ValueError, match="lecun, official, efficient, .*, not 'zeros'"):
        preset("capsnet_mnist", init="zeros")
    with pytest.raises(ValueError):
        create_model(CNNConfig(channels=(4, 4), kernels=(5,)))
    assert preset("capsnet_mnist", num_classes=7).num_classes == 7
    assert PRESETS["capsnet_mnist"].num_classes == 10
