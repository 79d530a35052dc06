"""Batches as functions of (seed, step), computed on the device inside jit.

Nothing is stored between steps, so a resumed run sees the batches that the uninterrupted
one sees. Every example has its own key, derived from its place in the global batch, so
the pixels do not depend on how many devices share the batch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Source(NamedTuple):
    """A data set that lives on the device."""

    images: jax.Array  # [N, H, W, C] uint8
    labels: jax.Array  # [N] int32


class Batch(NamedTuple):
    """One step's examples."""

    images: jax.Array  # [B, H, W, C] float32 in [0, 1]
    labels: jax.Array  # [B] int32
    key: jax.Array  # for dropout


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Whole batches in the data; a different rest is left out in every epoch."""
    return max(1, examples // batch_size)


def to_unit(images: jax.Array) -> jax.Array:
    """uint8 pixels to float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255


def epoch_order(key: jax.Array, epoch: jax.Array, examples: int) -> jax.Array:
    """Order ``[N]`` in which an epoch visits the examples."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), examples)


def shift(key: jax.Array, image: jax.Array, pixels: int) -> jax.Array:
    """Move one image by up to ``pixels`` in each direction, filling with zeros.

    The two displacements are independent, uniform integers in [-pixels, pixels].

    Args:
      key: of this example. image: ``[H, W, C]``. pixels: largest displacement.
    """
    if not pixels:
        return image
    offset = jax.random.randint(key, (2,), 0, 2 * pixels + 1)
    padded = jnp.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)))
    return jax.lax.dynamic_slice(padded, (offset[0], offset[1], 0), image.shape)


def batch(
    source: Source,
    order: jax.Array,
    key: jax.Array,
    step: jax.Array,
    *,
    batch_size: int,
    max_shift: int,
    part: tuple[jax.Array | int, int] = (0, 1),
) -> Batch:
    """The examples of one step, or one device's equal part of them.

    Args:
      source: training data. order: :func:`epoch_order` of the step's epoch.
      key: of the run. step: counted over the whole run.
      batch_size: of all parts together; more than the examples repeats them.
      max_shift: see :func:`shift`, in pixels.
      part: (which, of how many).
    """
    which, parts = part
    size = batch_size // parts
    within = step % steps_per_epoch(order.shape[0], batch_size)
    places = which * size + jnp.arange(size)
    rows = order[(within * batch_size + places) % order.shape[0]]
    key = jax.random.fold_in(key, step)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)
    images = to_unit(jax.vmap(lambda k, i: shift(k, i, max_shift))(keys, source.images[rows]))
    return Batch(images, source.labels[rows], jax.random.fold_in(key, batch_size + which))
