"""Configurations of capsule networks: the smallest image, and combinations that are refused."""

import dataclasses

import pytest
from small_networks import TINY

from capsjax import (
    PRESETS,
    CapsNetConfig,
    CNNConfig,
    create_model,
    preset,
)


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
        ({"pose_norm": "batch"}, "auto, none, not 'batch'"),
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
    as_they_are = {"em", "vb", "self"}
    for routing in ("dynamic", "inverted", "self_attention", "kmeans", *as_they_are):
        squash = "none" if routing in as_they_are else "paper"
        config = dataclasses.replace(TINY, routing=routing)
        assert (config.squash, config.primary_squash) == ("auto", squash)
        assert dataclasses.replace(config, squash="half").primary_squash == "half"
    assert PRESETS["capsnet_matrix"].primary_squash == "none"
    assert PRESETS["capsnet_deep"].primary_squash == "exponential"
    assert PRESETS["capsnet_mnist"].primary_squash == "paper"
