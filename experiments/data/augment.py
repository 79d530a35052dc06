"""Preprocessing and augmentation of images, in training and in evaluation.

Functions of one image ``[H, W, C]``, batched by vmap inside jit. Random choices are functions of
a key.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from capsjax.preprocessing import Steps, pad, to_unit
from experiments.data.distortions import RANGES, distort, random_mirror

UNIT = Steps((("unit",),))
SHIFTING = ("auto", "shift", "flip")  # augmentations that --max_shift applies to
LARGE = 64  # side from which images are halved; smaller ones count as prepared


class Preprocessing(NamedTuple):
    """Functions from a uint8 image ``[H, W, C]`` to a network's input, float32 ``[h, w, c]``."""

    train: Callable[[jax.Array, jax.Array], jax.Array]  # (key, image) -> input
    evaluate: Steps  # image -> input


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


def random_brightness(key: jax.Array, image: jax.Array, most: float) -> jax.Array:
    """Adds one number, uniform in [-most, most], to every pixel."""
    return image + jax.random.uniform(key, (), minval=-most, maxval=most)


def random_contrast(key: jax.Array, image: jax.Array, low: float, high: float) -> jax.Array:
    """Scales each channel's differences from its mean by one factor, uniform in [low, high]."""
    mean = jnp.mean(image, axis=(0, 1), keepdims=True)
    return (image - mean) * jax.random.uniform(key, (), minval=low, maxval=high) + mean


def random_shifts(pixels: int, augmentation: str = "auto") -> Preprocessing:
    """Returns the MNIST input of Sabour et al. (2017): random shifts in training only.

    Args:
      pixels: largest shift.
      augmentation: ``auto`` and ``shift`` mean these shifts, ``flip`` mirrors half of the images,
        too; for others see :data:`experiments.data.distortions.RANGES`.
    """
    if augmentation == "none":
        return Preprocessing(lambda key, image: to_unit(image), UNIT)
    if augmentation in RANGES:
        return Preprocessing(
            lambda key, image: distort(key, to_unit(image), RANGES[augmentation]), UNIT
        )
    if augmentation == "flip":

        def train(key, image):
            place, mirror = jax.random.split(key)
            return to_unit(random_mirror(mirror, random_shift(place, image, pixels)))

        return Preprocessing(train, UNIT)
    return Preprocessing(lambda key, image: to_unit(random_shift(key, image, pixels)), UNIT)


def random_shifts_on_canvas(margin: int, pixels: int, augmentation: str = "auto") -> Preprocessing:
    """Returns images with black margins on all sides, and random shifts there in training.

    Other values of ``augmentation`` are those of :func:`random_shifts`, of the canvas.
    """
    evaluate = Steps((("pad", margin), *UNIT.steps) if margin else UNIT.steps)
    if augmentation not in ("auto", "shift"):
        train, _ = random_shifts(pixels, augmentation)
        return Preprocessing(lambda key, image: train(key, pad(image, margin)), evaluate)
    return Preprocessing(
        lambda key, image: to_unit(random_shift(key, pad(image, margin), pixels)), evaluate
    )


def square_crops(
    size: int,
    *,
    flip: bool = False,
    halve: bool = False,
    resize: int = 0,
    standardized: bool = True,
    normalize: str = "standardize",
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
      normalize: how, ``standardize`` or ``standardize_channels`` of :mod:`capsjax.preprocessing`.
      order: of the three steps in training. Those in which it differs from the default are the
        published ones of networks for smallNORB. In evaluation images are cropped and normalized,
        in the same order.
      brightness: largest change of brightness, of 1, or in units of normalized pixels.
      contrast: smallest and largest factor of contrast.
      augmentation: see above.

    Raises (both functions):
      ValueError: the image is smaller than the crop.
    """
    names = order.split(", ")
    first = [("unit",), *([("halve", LARGE)] if halve else [])]
    prepare = Steps((*first, *([("resize", resize)] if resize else [])))
    finish = (normalize if standardized else "clip",)
    last = {"crop": ("crop", size), "normalize": finish}
    evaluate = Steps((*prepare.steps, *(last[name] for name in names if name in last)))

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
        jax.eval_shape(Steps((last["crop"],)), x)  # refuses an image that is smaller
        if augmentation in RANGES:
            x = distort(jax.random.fold_in(key, 4), x, RANGES[augmentation])
        steps = {"crop": crop, "distort": change_colours, "normalize": Steps((finish,))}
        for name in names:
            x = steps[name](x)
        return x

    return Preprocessing(train, evaluate)
