"""Pairs of overlapping digits (MultiMNIST), drawn during training from single-label grey images.

Sabour et al. (2017), section 6.1: a digit overlaps one of another class and of the same split,
each shifted independently by up to 4 pixels in each direction, on a canvas of 36x36 pixels. The
authors write 60 million pairs to disk; here every visit to a digit draws another partner and
other shifts, as a function of (seed, step), and the test pairs are a function of a fixed seed.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from capsjax import map_batches
from capsjax.preprocessing import pad, to_unit
from experiments import UserError
from experiments.data.augment import random_shift

MARGIN = 4  # pixels of the canvas around an unshifted digit
TEST_SEED = 20171026  # the same for all runs
BATCH_SIZE = 1000  # pairs drawn at once


class PairSource(NamedTuple):
    """The digits of a split, indexed by class."""

    images: jax.Array  # [N, H, W, 1] uint8
    labels: jax.Array  # [N] int32
    by_class: jax.Array  # [N] int32, rows sorted by class
    starts: jax.Array  # [J + 1] int32, where each class starts in by_class


class Pair(NamedTuple):
    """The labels and the separate digits of an example, as the loss receives them."""

    labels: jax.Array  # [2] int32
    digits: jax.Array  # [2, h, w, 1] float32 in [0, 1], each at its position on the canvas


def make_pair_source(images: np.ndarray, labels: np.ndarray, num_classes: int) -> PairSource:
    """Returns the source of pairs of the images and labels of one split.

    Raises:
      UserError: all images are of one class, or they are not grey.
    """
    if images.shape[-1] != 1:
        raise UserError(
            f"pairs are made of grey images, not of images with {images.shape[-1]} channels"
        )
    counts = np.bincount(labels, minlength=num_classes)
    if np.count_nonzero(counts) < 2:
        raise UserError("pairs need images of two classes, and all are of one")
    starts = np.append(0, np.cumsum(counts)).astype(np.int32)
    return PairSource(images, labels, np.argsort(labels, kind="stable").astype(np.int32), starts)


def random_partner(key: jax.Array, source: PairSource, label: jax.Array) -> jax.Array:
    """Returns a random row of another class than ``label``, all equally probable."""
    start, stop = source.starts[label], source.starts[label + 1]
    place = jax.random.randint(key, (), 0, source.by_class.shape[0] - (stop - start))
    return source.by_class[jnp.where(place < start, place, place + stop - start)]


def random_pair(
    key: jax.Array,
    source: PairSource,
    row: jax.Array,
    pixels: int,
    distortion: Callable | None = None,
) -> tuple:
    """Draws one pair: the digit of ``row`` and a partner, each shifted by up to ``pixels``.

    Before that each is changed by ``distortion(key, image)``, if there is one.

    Returns:
      uint8 ``[2, H + 8, W + 8, 1]``, each digit alone on the canvas, and labels int32 ``[2]``.
    """
    partner_key, *shift_keys = jax.random.split(key, 3)
    rows = jnp.stack([row, random_partner(partner_key, source, source.labels[row])])
    place = jax.vmap(lambda key, image: random_shift(key, pad(image, MARGIN), pixels))
    keys, images = jnp.stack(shift_keys), source.images[rows]
    if distortion:
        images = jax.vmap(distortion)(jax.vmap(jax.random.fold_in, (0, None))(keys, 1), images)
    return place(keys, images), source.labels[rows]


def overlay_digits(digits: jax.Array) -> jax.Array:
    """Adds two digits ``[2, h, w, 1]`` uint8 to one float32 image, clipped at 1."""
    return to_unit(jnp.minimum(jnp.sum(digits.astype(jnp.int32), axis=0), 255))


def pair_target(digits: jax.Array, labels: jax.Array) -> Pair:
    """Returns what the loss takes for the label of a pair, see :func:`random_pair`."""
    return Pair(labels, to_unit(digits))


def fixed_pairs(source: PairSource, count: int, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the same pairs in all runs: uint8 ``[count, 2, h, w, 1]``, int32 ``[count, 2]``.

    The first digits go through the whole source in one random order, repeatedly.
    """
    key = jax.random.key(TEST_SEED)
    size = len(source.labels)
    order = np.asarray(jax.random.permutation(jax.random.fold_in(key, 0), size))
    key = jax.random.fold_in(key, 1)

    @jax.jit
    def draw(source, places, rows):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)
        return jax.vmap(random_pair, (0, None, 0, None))(keys, source, rows, pixels)

    places = np.arange(count)
    return map_batches(
        lambda batch, _: jax.device_get(draw(source, *batch)),
        (places, order[places % size]),
        BATCH_SIZE,
    )


def box_overlap(digits: jax.Array) -> jax.Array:
    """Returns how much two digits overlap: 0 if they are disjoint, 1 if one contains the other.

    This is the intersection of the bounding boxes of the digits' ink, as a fraction of the
    smaller box. The paper's "80% on average" is for boxes of 20x20 pixels.

    Args:
      digits: ``[2, h, w, 1]``.
    """
    ink = digits[..., 0] > 0

    def extent(axis):
        has_ink = jnp.any(ink, axis=axis)  # [2, n]
        first = jnp.argmax(has_ink, axis=1)
        last = has_ink.shape[1] - jnp.argmax(has_ink[:, ::-1], axis=1)
        return first, jnp.where(jnp.any(has_ink, axis=1), last, first)

    (top, bottom), (left, right) = extent(2), extent(1)
    height = jnp.maximum(jnp.min(bottom) - jnp.max(top), 0)
    width = jnp.maximum(jnp.min(right) - jnp.max(left), 0)
    smaller = jnp.min((bottom - top) * (right - left))
    return (height * width).astype(jnp.float32) / jnp.maximum(smaller, 1).astype(jnp.float32)
