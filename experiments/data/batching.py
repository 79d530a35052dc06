"""Batches as functions of (seed, step), computed on the device inside jit.

Nothing is stored between steps, so a resumed run gets the same batches as an uninterrupted run.
Every example has its own key, derived from its position in the global batch, so the pixels do not
depend on the number of devices that share the batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.stored_images import StoredImages

# Stored images that are on the device, the window: as many batches, unless that is more memory.
# The size depends on nothing that may change when a run goes on, because programs for other sizes
# may round otherwise.
WINDOW_STEPS, WINDOW_BYTES = 10, 64 * 2**20
FEWEST = 16  # images of a window: those that the guard looks at


class ImageSource(NamedTuple):
    """The training images and labels, on the device."""

    images: jax.Array  # [N, H, W, C] uint8
    labels: jax.Array  # [N] int32


class Batch(NamedTuple):
    """The examples of one step."""

    images: jax.Array  # [B, h, w, c] float32
    labels: Any  # [B] int32, or a pytree of arrays [B, ...]
    key: jax.Array  # for dropout


def image_source(
    images: np.ndarray | StoredImages, labels: np.ndarray, batch_size: int
) -> ImageSource:
    """Returns what the device is given of the training data before training.

    It is all of them or, of stored images, as many of the first ones as a window of whole batches
    holds. Training exchanges the contents of the window, see :mod:`experiments.training.windows`.

    Args:
      images, labels: of the training data.
      batch_size: B.
    """
    if not isinstance(images, StoredImages):
        return ImageSource(images, labels)
    fit = WINDOW_BYTES // (batch_size * int(np.prod(images.shape[1:])))
    steps = max(1, -(-FEWEST // batch_size), min(WINDOW_STEPS, fit))
    rows = np.arange(batch_size * steps) % len(images)
    return ImageSource(images[rows], labels[rows])


def spread_rows(rows: int, count: int) -> np.ndarray:
    """Returns ``count`` of ``rows`` row numbers, or all of fewer, evenly and in their order."""
    return np.arange(min(rows, count)) * rows // min(rows, count)


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Returns the number of whole batches; every epoch leaves out a different remainder."""
    return max(1, examples // batch_size)


def epoch_orders(key: jax.Array, block: jax.Array, examples: int, epochs: int = 1) -> jax.Array:
    """Returns the permutations ``[E, N]`` in which the epochs of a block visit the examples.

    Args:
      key: of the run.
      block: index of the block.
      examples: N, the number of training examples.
      epochs: E, the number of epochs in a block.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, block * epochs + jnp.arange(epochs))
    return jax.vmap(lambda key: jax.random.permutation(key, examples))(keys)


def balanced_orders(
    key: jax.Array, block: jax.Array, labels: jax.Array, num_classes: int, epochs: int = 1
) -> jax.Array:
    """Returns rows ``[E, N]`` of which every class that has any takes an equal part.

    In an epoch the numbers of visits of two classes differ by one at most, and so do those of two
    examples of a class. The rows are a function of the key and the number of the epoch.

    Args:
      key: of the run.
      block: index of the block.
      labels: of the training examples, int32 ``[N]``.
      num_classes: J.
      epochs: E, the number of epochs in a block.
    """
    counts = jnp.bincount(labels, length=num_classes)
    present = jnp.sum(counts > 0)
    starts = jnp.cumsum(counts) - counts
    used = jnp.argsort(counts == 0, stable=True)  # classes with examples come first
    slots = jnp.arange(labels.shape[0])

    def one(key):
        order_key, class_key, slot_key = jax.random.split(key, 3)
        shuffled = jax.random.permutation(order_key, labels.shape[0])
        by_class = shuffled[jnp.argsort(labels[shuffled], stable=True)]
        # Where N is no multiple of the number of classes, other classes get one more each time.
        first = jax.random.randint(class_key, (), 0, present)
        which = used[(slots + first) % present]
        rows = by_class[starts[which] + (slots // present) % counts[which]]
        return jax.random.permutation(slot_key, rows)

    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, block * epochs + jnp.arange(epochs))
    return jax.vmap(one)(keys)


def rows_of_steps(orders: np.ndarray, batch_size: int) -> np.ndarray:
    """Returns the rows ``[steps, B]`` that :func:`make_batch` takes in the steps of a block.

    Args:
      orders: of the block, ``[E, N]``.
      batch_size: B.
    """
    examples = orders.shape[1]
    places = np.arange(steps_per_epoch(examples, batch_size) * batch_size) % examples
    return orders[:, places].reshape(-1, batch_size)


def make_batch(
    example: Callable,
    source: Any,
    orders: jax.Array,
    key: jax.Array,
    step: jax.Array,
    *,
    batch_size: int,
    part: tuple[jax.Array | int, int] = (0, 1),
) -> Batch:
    """Returns the examples of one step, or one device's equal part of them.

    Args:
      example: ``(key, source, row) -> (image, label)`` for one example with its own key.
      source: training data.
      orders: :func:`epoch_orders` of the block that contains the step.
      key: of the run.
      step: counted over the whole run.
      batch_size: of all parts together; examples repeat in a batch larger than the data.
      part: (index of the part, number of parts).
    """
    index, parts = part
    size = batch_size // parts
    epochs, examples = orders.shape
    epoch, within = jnp.divmod(step, steps_per_epoch(examples, batch_size))
    places = index * size + jnp.arange(size)
    rows = orders[epoch % epochs, (within * batch_size + places) % examples]
    key = jax.random.fold_in(key, step)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)
    images, labels = jax.vmap(example, (0, None, 0))(keys, source, rows)
    return Batch(images, labels, jax.random.fold_in(key, batch_size + index))
