"""Training on stored images: the device holds a window of some steps at a time.

The window takes the place of the training data in the compiled chunk of steps, which is the same as
for data on the device: step t finds its batch in place t modulo the steps of a window. Rows, keys
and therefore batches are those of data on the device. Nothing of the reader is saved, because it is
a function of the number of the step (:mod:`experiments.data.read_ahead`), which is in every
checkpoint.

Of several processes each reads its part of every batch. The images of a window are therefore in
the order of their places in the batch, and then of the steps: divided among the devices, each
device has those of its process.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.config import UserError
from experiments.data import batching
from experiments.data.batching import ImageSource
from experiments.data.read_ahead import check_grain, read_ahead
from experiments.data.stored_images import StoredImages
from experiments.tasks.base import Setup
from experiments.training import processes
from experiments.training.devices import own_rows, replicate, split_batch
from experiments.training.setup import steps_per_block


class Window(NamedTuple):
    """The batches of some steps: on every device, or divided among those of several processes."""

    source: ImageSource  # arrays [B * steps, ...]
    first: int  # step
    count: int  # of steps


def is_stored(setup: Setup) -> bool:
    """Returns whether training reads its images while it runs."""
    return isinstance(setup.dataset.train_images, StoredImages)


def check(setup: Setup) -> None:
    """Refuses stored images where training can't read them.

    Raises:
      UserError: Grain is missing, or an example is made of more than one image.
    """
    if not is_stored(setup):
        return
    if not isinstance(setup.pipeline.source, ImageSource):
        raise UserError(
            f"{setup.config.program} makes an example of several images, which have to be in "
            "memory together: use --input=device"
        )
    check_grain(setup.dataset.name)


def orders_in_window(setup: Setup) -> np.ndarray:
    """Returns the orders ``[1, N]`` that let a chunk find its batches in a window of N images."""
    places = np.arange(len(setup.pipeline.source.images), dtype=np.int32)
    return places.reshape(setup.config.batch_size, -1).T.reshape(1, -1)


def make_next_window(setup: Setup, rows: np.ndarray, first: int) -> Callable[[int], Window]:
    """Returns ``next_window(most)``: as many of the next steps as a window holds, at most ``most``.

    Args:
      setup: of the run.
      rows: of the steps from ``first`` on, ``[steps, B]``.
      first: number of a step.
    """
    data, source = setup.dataset, setup.pipeline.source
    size = setup.config.batch_size
    steps, parts = len(source.images) // size, setup.config.capsule_shards
    own = own_rows(size, setup.devices, parts)  # of a batch
    workers = setup.config.input_workers
    batches = read_ahead(data.train_images, data.train_labels, rows[:, own], workers)
    numbered = zip(itertools.count(first), batches)
    place = replicate if processes.count() == 1 else split_batch

    def next_window(most):
        # On a CPU the device works on this memory itself, which therefore can't be used again.
        whole = ImageSource(*(np.zeros(x.shape, x.dtype) for x in source))
        columns = [x.reshape(size, steps, *x.shape[1:]) for x in whole]
        found = []
        for step, batch in itertools.islice(numbered, min(most, steps)):
            for column, values in zip(columns, batch, strict=True):
                column[own, step % steps] = values
            found.append(step)
        images = place(whole, setup.devices, parts)
        return Window(images, found[0], len(found))

    return next_window


def make_advance(
    setup: Setup, chunk: Callable, key: jax.Array, make_orders: Callable, step: int
) -> tuple[Callable, Callable]:
    """Returns ``advance`` and ``make_orders`` of a :class:`experiments.training.loop.Stepper`.

    In the place of the orders of a block there is what gives the windows of its steps.

    Args:
      setup: of the run.
      chunk: see :func:`experiments.training.chunks.make_chunk`.
      key: of batches and augmentation, on all devices.
      make_orders: ``(number of a block of epochs) -> orders``.
      step: with which training begins, or continues.
    """
    places = replicate(orders_in_window(setup), setup.devices, setup.config.capsule_shards)
    steps = steps_per_block(setup)

    def start_block(block):
        rows = batching.rows_of_steps(np.asarray(make_orders(block)), setup.config.batch_size)
        first = max(step, block * steps)
        return make_next_window(setup, rows[first - block * steps :], first)

    def advance(state, next_window, count):
        sums = None
        while count:
            window = next_window(count)
            state, own = chunk(state, window.source, places, key, window.count)
            sums = own if sums is None else jax.tree.map(jnp.add, sums, own)
            count -= window.count
        return state, sums

    return advance, start_block
