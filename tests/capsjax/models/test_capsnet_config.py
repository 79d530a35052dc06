"""Configurations of capsule networks: the smallest image, and combinations that are refused."""

import dataclasses

import numpy as np
import pytest
from small_networks import TINY

from capsjax import (
    PRESETS,
    CapsNetConfig,
    CNNConfig,
    create_model,
    preset,
)
from capsjax.routing import ROUTINGS, InputCapsules, make_routing, run_routing


# Bug: a negative dimension, or a crash deep inside the framework.
def test_images_that_are_too_small_are_rejected():
    for shape in [(16, 28, 1), (28, 16, 1), (16, 16, 3)]:
        with pytest.raises(ValueError, match=f"{shape[0]}x{shape[1]}.*smallest image is 17x17"):
            preset("capsnet_mnist", image_shape=shape)
    with pytest.raises(ValueError, match="smallest image is 7x7"):
        dataclasses.replace(TINY, conv_kernel=5, image_shape=(6, 9, 2))
    # 1, 2, 4, 6 positions, then 9 + 2 * 5 = 19 pixels of the map, 27 of the image.
    with pytest.raises(ValueError, match="26x28 .*9x9, 9x9, 3x3, 3x3, 2x2;.* image is 27x27"):
        preset("capsnet_deep", image_shape=(26, 28, 1))
    assert create_model(preset("capsnet_deep", image_shape=(27, 27, 1)))
    # 9 positions, 11 pixels, 13, 15, and 19.
    with pytest.raises(ValueError, match="smallest image is 27x27"):
        preset("capsnet_efficient", image_shape=(28, 26, 1))


def test_configurations_are_frozen_and_hashable():
    for config in (CapsNetConfig(), CNNConfig()):
        with pytest.raises(dataclasses.FrozenInstanceError):
            config.num_classes = 3
        assert hash(config) == hash(dataclasses.replace(config))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"votes": "matrix"}, "votes 'matrix' keep the pose size: 3 can't become 4"),
        ({"votes": "elementwise"}, "votes 'elementwise' keep the pose size: 3 can't become 4"),
        ({"votes": "conv_matrix", "class_pose": 3}, "square number of components, not 3"),
        (
            {"layer_votes": "matrix", "capsule_layers": ((2, 2, 1),), "primary_types": 3},
            "votes 'matrix' keep the pose size: 3 can't become 4",
        ),
        ({"votes": "ful"}, "votes must be one of full, .*elementwise, not 'ful'"),
        ({"layer_votes": "ful"}, "layer_votes must be one of full, .*, not 'ful'"),
        ({"squash": "cube"}, "squash must be one of auto, paper, .*, not 'cube'"),
        ({"routing": "dynamc"}, "routing must be one of dynamic, .*, not 'dynamc'.*'dynamic'"),
        ({"routing": "self-attention"}, r"not 'self-attention' \(did you mean 'self_attention'"),
        ({"routing_schedule": "random"}, "sequential, concurrent, not 'random'"),
        ({"pose_norm": "layer"}, "auto, none, batch, not 'layer'"),
        ({"pose_norm": "batch"}, "pose_norm 'batch' is for routing 'vb', not 'dynamic'"),
        ({"pose_norm": "batch", "routing": "inverted"}, "routing 'vb', not 'inverted'"),
        ({"coordinates": "polar"}, "none, pixels, grid, tenths, not 'polar'"),
        ({"coordinates": "grid", "class_pose": 8}, "square matrices, not 8 numbers"),
        ({"input_norm": "layer"}, "none, batch, image, not 'layer'"),
        ({"primary_norm": "layer"}, "none, batch, not 'layer'"),
        ({"routing_iterations": 0}, "iterations must be 1 or more, not 0"),
        ({"primary_activation": "relu"}, "length, sigmoid, not 'relu'"),
        ({"primary_depthwise": True}, r"depthwise .* 4 channels, not 2 \* 3"),
        (
            {"routing": "em", "routing_schedule": "concurrent", "capsule_layers": ((2, 2, 1),)},
            "routing 'em' has no concurrent schedule",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_invalid_configurations_are_rejected(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        create_model(dataclasses.replace(TINY, **changes))
    assert "\n" not in str(error.value)


def test_em_with_one_layer_may_be_concurrent():
    assert create_model(dataclasses.replace(TINY, routing="em", routing_schedule="concurrent"))


def test_poses_are_squashed_where_the_paper_of_the_routing_does():
    others = {
        "em": "layer_norm",  # for the batch normalization of its networks
        "vb": "none",
        "self": "none",
        "heinsen": "none",
        "inverted": "layer_norm",
    }
    for routing in ("dynamic", "self_attention", "kmeans", *others):
        squash = others.get(routing, "paper")
        config = dataclasses.replace(TINY, routing=routing)
        assert (config.squash, config.primary_squash) == ("auto", squash)
        assert dataclasses.replace(config, squash="half").primary_squash == "half"
    assert PRESETS["capsnet_matrix"].primary_squash == "none"
    assert PRESETS["capsnet_deep"].primary_squash == "exponential"
    assert PRESETS["capsnet_mnist"].primary_squash == "paper"


def test_presence_of_primary_capsules_is_that_of_the_paper_of_the_routing():
    for routing in ROUTINGS:
        config = dataclasses.replace(TINY, routing=routing)
        own = "sigmoid" if routing in ("em", "vb", "self") else "length"
        assert (config.primary_activation, config.presence) == ("auto", own)
        assert dataclasses.replace(config, primary_activation="length").presence == "length"


@pytest.mark.parametrize(
    "routing, own", [("kde", "half"), ("kmeans", "half"), ("dynamic", "paper")]
)
def test_squash_of_class_capsules_is_that_of_the_routing(routing, own):
    """Unless the network's is given."""
    votes = np.random.default_rng(0).normal(size=(4, 3, 5)).astype(np.float32)
    capsules = InputCapsules(votes, votes[:, 0], np.ones(4, np.float32))
    for given, squash in (("auto", own), ("exponential", "exponential")):
        config = dataclasses.replace(TINY, routing=routing, squash=given)
        got = run_routing(config.make_routing(), {}, capsules)
        want = run_routing(make_routing(routing, squash=squash), {}, capsules)
        np.testing.assert_array_equal(got.pose, want.pose)
