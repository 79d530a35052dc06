"""Preprocessing and augmentation of images, in training and in evaluation.

Functions of one image ``[H, W, C]``, batched by vmap inside jit. Random choices are functions of
a key.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments import UserError
from experiments.data.distortions import RANGES, distort, random_mirror

LARGE = 64  # side from which images are halved; smaller ones count as prepared


class Preprocessing(NamedTuple):
    """Functions from a uint8 image ``[H, W, C]`` to a network's input, float32 ``[h, w, c]``."""

    train: Callable[[jax.Array, jax.Array], jax.Array]  # (key, image) -> input
    evaluate: Callable[[jax.Array], jax.Array]  # image -> input


def to_unit(images: jax.Array) -> jax.Array:
    """Converts uint8 pixels to float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255


def pad(image: jax.Array, pixels: int) -> jax.Array:
    """Pads an image with zeros, ``pixels`` on each side: ``[H + 2p, W + 2p, C]``."""
    return jnp.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)))


def random_shift(key: jax.Array, image: jax.Array, pixels: int) -> jax.Array:
    """Translates an image by up to ``pixels`` in each direction, filling with zeros.

    The two displacements are independent, uniform integers in [-pixels, pixels].

    Args:
      key: of this example.
      image: ``[H, W, C]``.
      pixels: largest displacement.
    """
    if not pixels:
        return image
    return random_crop(key, pad(image, pixels), image.shape[:2])


def random_crop(key: jax.Array, image: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Returns a crop ``[h, w, C]`` of an image, all positions equally probable."""
    places = jnp.array([n - m + 1 for n, m in zip(image.shape, size)])
    offset = jax.random.randint(key, (2,), 0, places)
    return jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), (*size, image.shape[2]))


def centre_crop(image: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Returns the crop ``[h, w, C]`` from the middle of an image."""
    top, left = ((n - m) // 2 for n, m in zip(image.shape, size))
    return image[top : top + size[0], left : left + size[1]]


def halve_resolution(image: jax.Array) -> jax.Array:
    """Averages 2x2 pixels to ``[H // 2, W // 2, C]``, without a last odd row or column."""
    height, width = (n // 2 for n in image.shape[:2])
    squares = image[: 2 * height, : 2 * width].reshape(height, 2, width, 2, -1)
    return jnp.mean(squares, axis=(1, 3))


def random_brightness(key: jax.Array, image: jax.Array, most: float) -> jax.Array:
    """Adds one number, uniform in [-most, most], to every pixel."""
    return image + jax.random.uniform(key, (), minval=-most, maxval=most)


def random_contrast(key: jax.Array, image: jax.Array, low: float, high: float) -> jax.Array:
    """Scales each channel's differences from its mean by one factor, uniform in [low, high]."""
    mean = jnp.mean(image, axis=(0, 1), keepdims=True)
    return (image - mean) * jax.random.uniform(key, (), minval=low, maxval=high) + mean


def standardize(image: jax.Array) -> jax.Array:
    r"""Normalizes an image to mean zero and standard deviation one over pixels and channels.

    The divisor is :math:`\max(\sigma, N^{-1/2} / 255)` for N numbers, so that a constant image
    becomes zero. It is TensorFlow's ``per_image_standardization``, which the authors' code applies
    to pixels in 0..255.

    Args:
      image: pixels in [0, 1], or beyond after changes of contrast and brightness.
    """
    centred = image - jnp.mean(image)
    deviation = jnp.sqrt(jnp.mean(jnp.square(centred)))
    return centred / jnp.maximum(deviation, image.size**-0.5 / 255)


def standardize_channels(image: jax.Array) -> jax.Array:
    """Normalizes each channel of an image to mean zero and standard deviation one.

    The divisor is the root of the unbiased variance, at least 1e-8 (Ribeiro et al. 2020).

    Args:
      image: ``[H, W, C]``.
    """
    centred = image - jnp.mean(image, axis=(0, 1), keepdims=True)
    square = jnp.sum(jnp.square(centred), axis=(0, 1), keepdims=True)
    return centred / jnp.maximum(jnp.sqrt(square / (image[..., 0].size - 1)), 1e-8)


def random_shifts(pixels: int, augmentation: str = "auto") -> Preprocessing:
    """Returns the MNIST input of Sabour et al. (2017): random shifts in training only.

    Args:
      pixels: largest shift.
      augmentation: ``auto`` and ``shift`` mean these shifts, ``flip`` mirrors half of the images,
        too; for others see :data:`experiments.data.distortions.RANGES`.
    """
    if augmentation == "none":
        return Preprocessing(lambda key, image: to_unit(image), to_unit)
    if augmentation in RANGES:
        return Preprocessing(
            lambda key, image: distort(key, to_unit(image), RANGES[augmentation]), to_unit
        )
    if augmentation == "flip":

        def train(key, image):
            place, mirror = jax.random.split(key)
            return to_unit(random_mirror(mirror, random_shift(place, image, pixels)))

        return Preprocessing(train, to_unit)
    return Preprocessing(lambda key, image: to_unit(random_shift(key, image, pixels)), to_unit)


def random_shifts_on_canvas(margin: int, pixels: int, augmentation: str = "auto") -> Preprocessing:
    """Returns images with black margins on all sides, and random shifts there in training.

    Other values of ``augmentation`` are those of :func:`random_shifts`, of the canvas.
    """
    if augmentation not in ("auto", "shift"):
        train, evaluate = random_shifts(pixels, augmentation)
        return Preprocessing(
            lambda key, image: train(key, pad(image, margin)),
            lambda image: evaluate(pad(image, margin)),
        )
    return Preprocessing(
        lambda key, image: to_unit(random_shift(key, pad(image, margin), pixels)),
        lambda image: to_unit(pad(image, margin)),
    )


def square_crops(
    size: int,
    *,
    flip: bool = False,
    halve: bool = False,
    resize: int = 0,
    standardized: bool = True,
    normalize: Callable[[jax.Array], jax.Array] = standardize,
    order: str = "crop, distort, normalize",
    brightness: float = 63 / 255,
    contrast: tuple[float, float] = (0.2, 1.8),
    augmentation: str = "auto",
) -> Preprocessing:
    """Returns square crops with the augmentation of the authors' CIFAR-10 input.

    In training the crop is random, and brightness and contrast change. In evaluation it is the crop
    from the middle.

    This is ``augmentation="auto"``. ``none`` takes the crop from the middle in training, too,
    ``shift`` a random crop of unchanged colours, ``flip`` mirrors half of these; ``affine`` and
    ``strong`` distort the image before all that ``auto`` does, see
    :data:`experiments.data.distortions.RANGES`.

    Args:
      size: side of the crops, in pixels.
      flip: whether to mirror half of them in training.
      halve: whether to halve the resolution of the images first, if they have 64x64 pixels or more.
      resize: side to which larger square images are reduced first; 0: none.
      standardized: whether to normalize crops; otherwise pixels are clipped to [0, 1].
      normalize: how, :func:`standardize` or :func:`standardize_channels`.
      order: of the three steps in training. Those in which it differs from the default are the
        published ones of networks for smallNORB. In evaluation images are cropped and normalized,
        in the same order.
      brightness: largest change of brightness, of 1, or in units of normalized pixels.
      contrast: smallest and largest factor of contrast.
      augmentation: see above.

    Raises (both functions):
      UserError: the image is smaller than the crop.
    """
    finish = normalize if standardized else lambda x: jnp.clip(x, 0, 1)
    names = order.split(", ")

    def prepare(image):
        x, smaller = to_unit(image), min(image.shape[:2])
        if halve and smaller >= LARGE:
            x = halve_resolution(x)
        if resize and smaller > resize:
            x = jax.image.resize(x, (resize, resize, x.shape[2]), "bilinear", antialias=False)
        height, width = x.shape[:2]
        if min(height, width) < size:
            raise UserError(f"{height}x{width} pixels are too few for crops of {size}x{size}")
        return x

    def train(key, image):
        if augmentation == "none":
            return evaluate(image)
        place, mirror, bright, contrasting = jax.random.split(key, 4)

        def crop(x):
            x = random_crop(place, x, (size, size))
            mirrored = augmentation == "flip" or (flip and augmentation != "shift")
            return random_mirror(mirror, x) if mirrored else x

        def change_colours(x):
            if augmentation in ("shift", "flip"):
                return x
            return random_contrast(contrasting, random_brightness(bright, x, brightness), *contrast)

        x = prepare(image)
        if augmentation in RANGES:
            x = distort(jax.random.fold_in(key, 4), x, RANGES[augmentation])
        return _in_order(names, {"crop": crop, "distort": change_colours, "normalize": finish})(x)

    def evaluate(image):
        steps = {"crop": lambda x: centre_crop(x, (size, size)), "normalize": finish}
        return _in_order(names, steps)(prepare(image))

    return Preprocessing(train, evaluate)


def _in_order(names, steps):
    """Returns the function that takes those of the named steps that there are, one by one."""

    def all_steps(x):
        for name in names:
            x = steps[name](x) if name in steps else x
        return x

    return all_steps
