"""From the pixels of an image to the input of a network: steps that can be written to a file.

Functions of one image ``[H, W, C]``. They are deterministic; augmentation belongs to training.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType

import chex
import jax
import jax.numpy as jnp

from capsjax.precision import accumulator

FITS = ("pad", "crop", "stretch", "digit")


def check_pixels(images: chex.Array) -> None:
    """Refuse images of whole numbers, in which a network would see 255 times the brightness.

    Args:
      images: of any shape.

    Raises:
      TypeError: they are not floats.
    """
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f"images must be floats in [0, 1], not {images.dtype}: divide by 255")


def to_unit(images: chex.Array) -> jax.Array:
    """Convert uint8 pixels to float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255


def pad(image: chex.Array, pixels: int) -> jax.Array:
    """Pad an image with zeros, ``pixels`` on each side: ``[H + 2p, W + 2p, C]``."""
    return jnp.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)))


def centre_crop(image: chex.Array, size: tuple[int, int]) -> jax.Array:
    """Return the crop ``[h, w, C]`` from the middle of an image.

    Raises:
      ValueError: the image is smaller than the crop.
    """
    (height, width), (h, w) = image.shape[:2], size
    if height < h or width < w:
        raise ValueError(f"{height}x{width} pixels are too few for crops of {h}x{w}")
    top, left = ((n - m) // 2 for n, m in zip(image.shape, size))
    return image[top : top + size[0], left : left + size[1]]


def halve_resolution(image: chex.Array) -> jax.Array:
    """Average 2x2 pixels to ``[H // 2, W // 2, C]``, without a last odd row or column."""
    height, width = (n // 2 for n in image.shape[:2])
    squares = image[: 2 * height, : 2 * width].reshape(height, 2, width, 2, -1)
    return jnp.mean(squares, axis=(1, 3))


def standardize(image: chex.Array) -> jax.Array:
    r"""Normalize an image to mean zero and standard deviation one over pixels and channels.

    The divisor is :math:`\max(\sigma, N^{-1/2} / 255)` for N numbers, so that a constant image
    becomes zero. It is TensorFlow's ``per_image_standardization``, which the code of Sabour et al.
    applies to pixels in 0..255.

    Args:
      image: pixels in [0, 1], or beyond after changes of contrast and brightness.

    Raises:
      TypeError: pixels are whole numbers.
    """
    centred = _centred(image, None)
    y = centred / _root(jnp.mean(jnp.square(centred)), image.size)
    return y.astype(image.dtype)


def standardize_channels(image: chex.Array) -> jax.Array:
    r"""Normalize each channel of an image to mean zero and standard deviation one.

    The divisor is the root of the unbiased variance (Ribeiro et al. 2020), for N pixels at least
    :math:`N^{-1/2} / 255`, so that a constant channel becomes zero: less than the deviation of an
    image of which one pixel differs by 1/255. Their code has 1e-8, which is below the rounding
    errors of a mean.

    Args:
      image: ``[H, W, C]``, pixels as for :func:`standardize`.

    Raises:
      TypeError: pixels are whole numbers.
    """
    centred = _centred(image, (0, 1))
    square = jnp.sum(jnp.square(centred), axis=(0, 1), keepdims=True)
    pixels = image.shape[0] * image.shape[1]
    return (centred / _root(square / max(pixels - 1, 1), pixels)).astype(image.dtype)


def _centred(image, axis):
    """Subtracts the mean, exactly that of equal pixels: sums of zeros have no rounding errors."""
    check_pixels(image)
    image = image.astype(accumulator(image.dtype))  # in float16 the floor of the divisor is zero
    differences = image - jax.lax.stop_gradient(
        image[:1, :1, :1] if axis is None else image[:1, :1]
    )
    return differences - jnp.mean(differences, axis=axis, keepdims=True)


def _root(variance, count):
    """The standard deviation, with a floor whose derivative is finite where the variance is 0."""
    return jnp.sqrt(jnp.maximum(variance, 1 / (count * 255**2)))


def _halve(image, side):
    return halve_resolution(image) if min(image.shape[:2]) >= side else image


def _resize(image, side):
    if min(image.shape[:2]) <= side:
        return image
    return jax.image.resize(image, (side, side, image.shape[2]), "bilinear", antialias=False)


def _crop(image, side):
    return centre_crop(image, (side, side))


# Functions of an image, and of a number of pixels for those that are listed in SIZED.
STEPS: Mapping[str, Callable] = MappingProxyType(
    {
        "unit": to_unit,
        "pad": pad,
        "halve": _halve,
        "resize": _resize,
        "crop": _crop,
        "standardize": standardize,
        "standardize_channels": standardize_channels,
        "clip": lambda image: jnp.clip(image, 0, 1),
    }
)
SIZED = ("pad", "halve", "resize", "crop")


@dataclasses.dataclass(frozen=True)
class Steps:
    """The steps of :class:`Preprocessing`, as a function of one image ``[H, W, C]``."""

    steps: tuple[tuple, ...]

    def __call__(self, image: chex.Array) -> jax.Array:
        """Take the steps one after another."""
        for name, *size in self.steps:
            image = STEPS[name](image, *size)
        return image


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What happens to images before a network sees them.

    The steps, by name: ``unit`` divides by 255; ``pad`` adds zeros on each side, a number of
    pixels; ``halve`` averages 2x2 pixels of images whose sides have at least so many pixels;
    ``resize`` reduces images of which both sides are larger to a square of this side, bilinearly;
    ``crop`` takes the square of this side from the middle; ``standardize`` and
    ``standardize_channels``, see the functions of these names; ``clip`` limits pixels to [0, 1].

    Calling it applies the steps to images ``[..., H, W, C]``, uint8, and returns float32; without
    a step that computes, such as ``unit``, it returns uint8, which no network takes.

    Raises:
      ValueError: a step or a fit is unknown, or a number is missing.

    Example:
      >>> import numpy as np
      >>> prepare = Preprocessing((28, 28, 1), (("unit",), ("crop", 24)))
      >>> inputs = prepare(np.full((5, 28, 28, 1), 255, np.uint8))
      >>> inputs.shape, float(inputs.max())
      ((5, 24, 24, 1), 1.0)
    """

    image_shape: tuple[int, int, int]  # height, width and channels before the steps
    # Each a name, and for some a number of pixels: ("unit",), ("crop", 32).
    steps: tuple[tuple, ...] = (("unit",),)
    # Range of the brightness of the borders of training images, in 0..1; (0, 0) for white on black
    # as MNIST. A range above 0.25 means that they have no common background.
    border: tuple[float, float] = (0.0, 1.0)
    # How a file of another size is brought to image_shape: pad, crop, stretch, or digit, centred as
    # the digits of MNIST are. Calls take images of that shape alone.
    fit: str = "pad"

    def __post_init__(self):
        for step in self.steps:
            name, *size = step or ("",)
            if not isinstance(name, str) or name not in STEPS:
                raise ValueError(f"steps: {name!r} is none of {', '.join(STEPS)}")
            if len(size) != (name in SIZED) or not all(type(n) is int and n > 0 for n in size):
                wanted = "a number of pixels" if name in SIZED else "no number"
                raise ValueError(f"steps: {name!r} takes {wanted}, not {size}")
        if self.fit not in FITS:
            raise ValueError(f"fit must be one of {', '.join(FITS)}, not {self.fit!r}")

    def __call__(self, images: chex.Array) -> jax.Array:
        """Apply the steps.

        Args:
          images: uint8 ``[..., H, W, C]``.

        Raises:
          ValueError: the images have another shape or type.
        """
        if images.shape[-3:] != tuple(self.image_shape) or images.dtype != jnp.uint8:
            found = f"{images.dtype} {list(images.shape)}"
            raise ValueError(f"images must be uint8 [..., {self.image_shape}], not {found}")
        one = Steps(self.steps)
        for _ in images.shape[:-3]:
            one = jax.vmap(one)
        return one(jnp.asarray(images))
