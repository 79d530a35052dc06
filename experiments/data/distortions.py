"""Random distortions of training images: rotation, scale, shear, shift, erasure and mirroring.

Functions of one image ``[H, W, C]`` and a key, batched by vmap inside jit. ``--augmentation=``
names them; the images of evaluation are never distorted.
"""

import types
from collections.abc import Callable, Mapping
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from experiments.data.affine import Affine, warp


class Ranges(NamedTuple):
    """Largest amounts of a distortion; each is uniform between minus and plus that amount."""

    rotation: float  # in degrees
    scale: float  # of the scales of rows and columns, each from 1 - scale to 1 + scale
    shear: float  # in pixels to the right for each pixel upwards
    shift: float  # as a share of height and width
    erased: float  # side of the square that is erased, as a share of the smaller side; 0: none


# Rotation and shift of ``affine`` are those of An et al. (2020), the rotation and the erasure of
# ``strong`` (4 pixels of 28) those of Byerly et al. (2021), whose rotations are normal with a
# third of this range for standard deviation. Scales and shears are ours.
RANGES: Mapping[str, Ranges] = types.MappingProxyType(
    {
        "affine": Ranges(rotation=20.0, scale=0.1, shear=0.1, shift=0.2, erased=0.0),
        "strong": Ranges(rotation=30.0, scale=0.2, shear=0.2, shift=0.2, erased=1 / 7),
    }
)


def random_transformation(key: chex.PRNGKey, ranges: Ranges, size: tuple[int, int]) -> Affine:
    """Returns a random transformation of an image with ``size`` rows and columns of pixels."""
    amounts = jnp.array(
        [
            ranges.rotation,
            ranges.shear,
            ranges.scale,
            ranges.scale,
            ranges.shift * size[1],
            ranges.shift * size[0],
        ],
        jnp.float32,
    )
    drawn = amounts * jax.random.uniform(key, (6,), minval=-1.0, maxval=1.0)
    return Affine(*(drawn + jnp.array([0.0, 0.0, 1.0, 1.0, 0.0, 0.0])))


def distort(key: chex.PRNGKey, image: jax.Array, ranges: Ranges) -> jax.Array:
    """Returns an image that is transformed at random, and has lost a random square.

    Args:
      key: of this example.
      image: ``[H, W, C]``, floats; outside of it are zeros.
      ranges: of the distortion.
    """
    place, hole = jax.random.split(key)
    image = warp(image, random_transformation(place, ranges, image.shape[:2]))
    side = round(ranges.erased * min(image.shape[:2]))
    return erase_square(hole, image, side) if side else image


def erase_square(key: chex.PRNGKey, image: jax.Array, side: int) -> jax.Array:
    """Sets a square of ``side`` pixels to zero, all positions in the image equally probable."""
    places = jnp.array([n - side + 1 for n in image.shape[:2]])
    top, left = jax.random.randint(key, (2,), 0, places)
    rows, columns = (jnp.arange(n) for n in image.shape[:2])
    inside = ((rows >= top) & (rows < top + side))[:, None] & (
        (columns >= left) & (columns < left + side)
    )[None, :]
    return jnp.where(inside[..., None], 0, image)


def random_mirror(key: chex.PRNGKey, image: jax.Array) -> jax.Array:
    """Exchanges left and right in half of the images."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def of_bytes(name: str) -> Callable[[chex.PRNGKey, jax.Array], jax.Array] | None:
    """Returns the distortion of uint8 images of a name, None for names that have no ranges.

    Its shift is left out: digits of pairs have one of their own.
    """
    if name not in RANGES:
        return None
    ranges = RANGES[name]._replace(shift=0.0)

    def of_image(key, image):
        return jnp.round(distort(key, image.astype(jnp.float32), ranges)).astype(jnp.uint8)

    return of_image
