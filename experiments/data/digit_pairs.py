"""Pairs of overlapping digits (MultiMNIST), made while training from single-label grey images.

Sabour et al. (2017), section 6.1: a digit lies over one of another class and of the same split,
each moved by up to 4 pixels in each direction, independently, on a canvas of 36x36 pixels. The
authors write 60 million pairs to disk; here every visit to a digit draws another partner and
other places, as a function of (seed, step), and the test pairs are a function of a fixed seed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from capsjax import map_batches
from experiments.config import UserError
from experiments.data.augment import pad, shift, to_unit

MARGIN = 4  # pixels, of the canvas around an unmoved digit
TEST_SEED = 20171026  # the same for all runs
CHUNK = 1000  # pairs drawn at once


class PairSource(NamedTuple):
    """Digits, and where those of each class are."""

    images: jax.Array  # [N, H, W, 1] uint8
    labels: jax.Array  # [N] int32
    by_class: jax.Array  # [N] int32, rows, in the order of their classes
    starts: jax.Array  # [J + 1] int32, where each class starts in by_class


class Pair(NamedTuple):
    """What the loss is told of an example."""

    labels: jax.Array  # [2] int32
    digits: jax.Array  # [2, h, w, 1] float32 in [0, 1]: each alone, where it is on the canvas


def make_source(images: np.ndarray, labels: np.ndarray, num_classes: int) -> PairSource:
    """Of the images and labels of one split.

    Raises:
      UserError: they are all of one class, or not grey.
    """
    if images.shape[-1] != 1:
        raise UserError(f"pairs are made of grey images, not of {images.shape[-1]} channels")
    counts = np.bincount(labels, minlength=num_classes)
    if np.count_nonzero(counts) < 2:
        raise UserError("pairs need digits of two classes in every split; raise --train_examples")
    starts = np.append(0, np.cumsum(counts)).astype(np.int32)
    return PairSource(images, labels, np.argsort(labels, kind="stable").astype(np.int32), starts)


def partner(key: jax.Array, source: PairSource, label: jax.Array) -> jax.Array:
    """A row of another class than ``label``, all of them equally probable."""
    start, stop = source.starts[label], source.starts[label + 1]
    place = jax.random.randint(key, (), 0, source.by_class.shape[0] - (stop - start))
    return source.by_class[jnp.where(place < start, place, place + stop - start)]


def draw(key: jax.Array, source: PairSource, row: jax.Array, pixels: int) -> tuple:
    """One pair: the digit of ``row`` and a partner, each moved by up to ``pixels``.

    Returns:
      uint8 ``[2, H + 8, W + 8, 1]``, each digit alone on the canvas, and labels int32 ``[2]``.
    """
    of_partner, *of_places = jax.random.split(key, 3)
    rows = jnp.stack([row, partner(of_partner, source, source.labels[row])])
    place = jax.vmap(lambda key, image: shift(key, pad(image, MARGIN), pixels))
    return place(jnp.stack(of_places), source.images[rows]), source.labels[rows]


def overlay(digits: jax.Array) -> jax.Array:
    """Both digits ``[2, h, w, 1]`` uint8 in one float32 image, the sum cut off at 1."""
    return to_unit(jnp.minimum(jnp.sum(digits.astype(jnp.int32), axis=0), 255))


def target(digits: jax.Array, labels: jax.Array) -> Pair:
    """What the loss is told of a raw pair, see :func:`draw`."""
    return Pair(labels, to_unit(digits))


def fixed(source: PairSource, count: int, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs that are always the same: uint8 ``[count, 2, h, w, 1]``, int32 ``[count, 2]``.

    The first digits are all of the source in a random order, again and again.
    """
    key = jax.random.key(TEST_SEED)
    size = len(source.labels)
    order = np.asarray(jax.random.permutation(jax.random.fold_in(key, 0), size))
    key = jax.random.fold_in(key, 1)

    @jax.jit
    def some(source, places, rows):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)
        return jax.vmap(draw, (0, None, 0, None))(keys, source, rows, pixels)

    places = np.arange(count)
    return map_batches(
        lambda batch, _: jax.device_get(some(source, *batch)), (places, order[places % size]), CHUNK
    )


def overlap(digits: jax.Array) -> jax.Array:
    """How much two digits overlap: 0 apart, 1 one within the other.

    The bounding box of each digit's ink, the area that both boxes share, and its share of the
    smaller box. The paper's "80% on average" is of boxes of 20x20 pixels.

    Args:
      digits: ``[2, h, w, 1]``.
    """
    ink = digits[..., 0] > 0

    def extent(axis):
        there = jnp.any(ink, axis=axis)  # [2, n]
        first = jnp.argmax(there, axis=1)
        last = there.shape[1] - jnp.argmax(there[:, ::-1], axis=1)
        return first, jnp.where(jnp.any(there, axis=1), last, first)

    (top, bottom), (left, right) = extent(2), extent(1)
    height = jnp.maximum(jnp.min(bottom) - jnp.max(top), 0)
    width = jnp.maximum(jnp.min(right) - jnp.max(left), 0)
    smaller = jnp.min((bottom - top) * (right - left))
    return (height * width).astype(jnp.float32) / jnp.maximum(smaller, 1).astype(jnp.float32)
