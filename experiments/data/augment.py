"""What becomes of an image before a network sees it, in training and afterwards.

Functions of one image, uint8 ``[H, W, C]``, to be batched by vmap inside jit. Random choices are
functions of a key.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.config import UserError


class Preprocess(NamedTuple):
    """Both give float32 ``[h, w, c]``."""

    train: Callable[[jax.Array, jax.Array], jax.Array]  # (key, image)
    evaluate: Callable[[jax.Array], jax.Array]  # (image)


def to_unit(images: jax.Array) -> jax.Array:
    """uint8 pixels to float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255


def pad(image: jax.Array, pixels: int) -> jax.Array:
    """Zeros around an image, ``pixels`` on each side: ``[H + 2p, W + 2p, C]``."""
    return jnp.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)))


def shift(key: jax.Array, image: jax.Array, pixels: int) -> jax.Array:
    """Move one image by up to ``pixels`` in each direction, filling with zeros.

    The two displacements are independent, uniform integers in [-pixels, pixels].

    Args:
      key: of this example. image: ``[H, W, C]``. pixels: largest displacement.
    """
    if not pixels:
        return image
    return random_crop(key, pad(image, pixels), image.shape[:2])


def random_crop(key: jax.Array, image: jax.Array, size: tuple[int, int]) -> jax.Array:
    """``[h, w, C]`` of an image, all places equally probable."""
    places = jnp.array([n - m + 1 for n, m in zip(image.shape, size)])
    offset = jax.random.randint(key, (2,), 0, places)
    return jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), (*size, image.shape[2]))


def centre_crop(image: jax.Array, size: tuple[int, int]) -> jax.Array:
    """``[h, w, C]`` from the middle of an image."""
    top, left = ((n - m) // 2 for n, m in zip(image.shape, size))
    return image[top : top + size[0], left : left + size[1]]


def halved(image: jax.Array) -> jax.Array:
    """Means of 2x2 pixels, ``[H // 2, W // 2, C]``; a last odd row or column is left out."""
    height, width = (n // 2 for n in image.shape[:2])
    squares = image[: 2 * height, : 2 * width].reshape(height, 2, width, 2, -1)
    return jnp.mean(squares, axis=(1, 3))


def random_brightness(key: jax.Array, image: jax.Array, most: float) -> jax.Array:
    """Add a number, uniform in [-most, most], to every pixel."""
    return image + jax.random.uniform(key, (), minval=-most, maxval=most)


def random_contrast(key: jax.Array, image: jax.Array, low: float, high: float) -> jax.Array:
    """Multiply each channel's differences from its mean by a number, uniform in [low, high]."""
    mean = jnp.mean(image, axis=(0, 1), keepdims=True)
    return (image - mean) * jax.random.uniform(key, (), minval=low, maxval=high) + mean


def standardise(image: jax.Array) -> jax.Array:
    r"""Mean zero and standard deviation one over all pixels and channels of an image.

    The divisor is :math:`\max(\sigma, N^{-1/2})` for N numbers, so that an even image gives zeros.
    """
    away = image - jnp.mean(image)
    return away / jnp.maximum(jnp.sqrt(jnp.mean(jnp.square(away))), image.size**-0.5)


def shifted(pixels: int) -> Preprocess:
    """MNIST of Sabour et al. (2017): moved in training, see :func:`shift`; pixels in [0, 1]."""
    return Preprocess(lambda key, image: to_unit(shift(key, image, pixels)), to_unit)


def on_canvas(margin: int, pixels: int) -> Preprocess:
    """Black margins on all sides; there images are moved by up to ``pixels`` in training."""
    return Preprocess(
        lambda key, image: to_unit(shift(key, pad(image, margin), pixels)),
        lambda image: to_unit(pad(image, margin)),
    )


def cropped(
    size: int,
    *,
    flip: bool = False,
    halve: bool = False,
    standardised: bool = True,
    brightness: float = 63 / 255,
) -> Preprocess:
    """Square crops with the distortions of the authors' CIFAR-10 input.

    In training a random crop, brightness changed by up to ``brightness`` (of 1), contrast by a
    factor of 0.2 to 1.8; otherwise the middle.

    Args:
      size: side of the crops, in pixels. flip: mirror half of them in training.
      halve: images first, see :func:`halved`.
      standardised: see :func:`standardise`; otherwise pixels are cut off at 0 and 1.

    Raises (both functions):
      UserError: the image is smaller than the crop.
    """
    finish = standardise if standardised else lambda x: jnp.clip(x, 0, 1)

    def whole(image):
        x = halved(to_unit(image)) if halve else to_unit(image)
        height, width = x.shape[:2]
        if min(height, width) < size:
            raise UserError(f"{height}x{width} pixels are too few for crops of {size}x{size}")
        return x

    def train(key, image):
        place, mirror, bright, contrast = jax.random.split(key, 4)
        x = random_crop(place, whole(image), (size, size))
        if flip:
            x = jnp.where(jax.random.bernoulli(mirror), x[:, ::-1], x)
        x = random_contrast(contrast, random_brightness(bright, x, brightness), 0.2, 1.8)
        return finish(x)

    def evaluate(image):
        return finish(centre_crop(whole(image), (size, size)))

    return Preprocess(train, evaluate)
