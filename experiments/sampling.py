"""Batches as functions of (seed, step), computed on the device inside jit.

Nothing is stored between steps, so a resumed run sees the batches that the uninterrupted
one sees. Every example has its own key, derived from its place in the global batch, so
the pixels do not depend on how many devices share the batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Source(NamedTuple):
    """A data set that lives on the device."""

    images: jax.Array  # [N, H, W, C] uint8
    labels: jax.Array  # [N] int32


class Batch(NamedTuple):
    """One step's examples."""

    images: jax.Array  # [B, h, w, c] float32
    labels: Any  # [B] int32, or a pytree of arrays [B, ...]
    key: jax.Array  # for dropout


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Whole batches in the data; a different rest is left out in every epoch."""
    return max(1, examples // batch_size)


def epoch_order(key: jax.Array, epoch: jax.Array, examples: int) -> jax.Array:
    """Order ``[N]`` in which an epoch visits the examples."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), examples)


def batch(
    example: Callable,
    source: Any,
    order: jax.Array,
    key: jax.Array,
    step: jax.Array,
    *,
    batch_size: int,
    part: tuple[jax.Array | int, int] = (0, 1),
) -> Batch:
    """The examples of one step, or one device's equal part of them.

    Args:
      example: ``(key, source, row) -> (image, label)``, one of a key of its own.
      source: training data. order: :func:`epoch_order` of the step's epoch.
      key: of the run. step: counted over the whole run.
      batch_size: of all parts together; more than the examples repeats them.
      part: (which, of how many).
    """
    which, parts = part
    size = batch_size // parts
    within = step % steps_per_epoch(order.shape[0], batch_size)
    places = which * size + jnp.arange(size)
    rows = order[(within * batch_size + places) % order.shape[0]]
    key = jax.random.fold_in(key, step)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)
    images, labels = jax.vmap(example, (0, None, 0))(keys, source, rows)
    return Batch(images, labels, jax.random.fold_in(key, batch_size + which))
