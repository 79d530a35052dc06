"""Small networks in the shapes of the papers, and what their first layers compute in NumPy."""

import dataclasses
import functools
from unittest import mock

import jax
import numpy as np
import reference
import reference_routing as loops
from helpers import as_float64, filled

import capsjax
from capsjax import CapsNetConfig

TINY = CapsNetConfig(
    image_shape=(8, 9, 2),
    num_classes=3,
    conv_channels=4,
    conv_kernel=3,
    primary_types=2,
    primary_pose=3,
    primary_kernel=3,
    primary_stride=2,
    class_pose=4,
    decoder=(5, 6),
)


OFFICIAL = {"init": "official", "routing_bias": True, "primary_scale": 1 / 32}


# Primary capsules at 4x3 positions, 3x2 above them, 2x1 above those.
DEEP = CapsNetConfig(
    image_shape=(10, 8, 1),
    num_classes=3,
    conv_channels=3,
    conv_kernel=2,
    primary_types=2,
    primary_pose=3,
    primary_kernel=3,
    primary_stride=2,
    capsule_layers=((3, 2, 1), (2, 2, 1)),
    class_pose=4,
    squash="exponential",
    decoder=None,
    dtype="float64",
)


KEY = jax.random.key(0)


def create_model(config):
    """Makes a network without the initial factor on sums of votes, as in the NumPy references.

    tests/capsjax/routing test the factor, and routing with one.
    """
    with mock.patch("capsjax.modules.initial_votes", return_value=None):
        return capsjax.create_model(config)


@functools.cache
def built(**changes):
    """Returns a tiny network: configuration, parameters without zeros, compiled apply."""
    config = dataclasses.replace(TINY, **changes)
    model = create_model(config)
    return config, filled(model), jax.jit(model.apply)


def images(n=3, shape=TINY.image_shape, seed=0):
    return np.random.default_rng(seed).uniform(size=(n, *shape)).astype(np.float32)


def in_float64(config, batch=2):
    """Returns network, parameters and images in float64."""
    model = create_model(dataclasses.replace(config, dtype="float64"))
    return model, as_float64(filled(model)), as_float64(images(batch, config.image_shape))


def expected(config, params, image, label=None):
    return reference.capsnet(
        as_float64(params),
        np.asarray(image, np.float64),
        pose=config.primary_pose,
        stride=config.primary_stride,
        iterations=config.routing_iterations,
        scale=config.primary_scale,
        label=label,
    )


def primary_capsules(params, x, pose):
    """Returns the poses ``[I, K]`` of the primary capsules of the network DEEP."""
    y = reference.convolution(x, params["conv"]["kernel"]) + params["conv"]["bias"]
    y = reference.convolution(reference.positive(y), params["primary"]["conv"]["kernel"], 2)
    y = (y + params["primary"]["conv"]["bias"]).reshape(-1, pose)
    return np.array([loops.squash_exponential(u) for u in y])


def seen(u, grid, kernel):
    """Returns the input capsules of every position, with stride 1."""
    return loops.patches(u.reshape(*grid, -1, u.shape[1]), kernel, 1)[0]


LAYERS = [(0, (4, 3), 2), (1, (3, 2), 2)]  # of DEEP: number, grid below, kernel
