"""Evaluation: metrics of held-out examples, with many batches in one call.

``summary.py`` calls it on the test set, at the end of a run; ``loop.py`` on the validation set.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from capsjax import map_batches, train
from experiments.data.stored_images import InPart, StoredImages
from experiments.tasks.base import Setup
from experiments.training import processes
from experiments.training.devices import mesh_of, own_rows, split_batch

BATCH = 128
BATCHES = 8  # in one call, which fetches its scratch memory once


def make_evaluate(setup: Setup) -> Callable:
    """Returns ``evaluate(variables, images, labels)``, the metrics of raw examples, NumPy ``[N]``.

    Every example counts once: the last batch is filled up and the filling is cut off. Several
    processes divide the batches, and all have all metrics. Of stored images each reads its part.
    """
    size = -(-BATCH // len(setup.devices)) * len(setup.devices)
    step, pipeline = train.make_eval_step(setup.measure), setup.pipeline

    # The results of the devices of other processes come to this one. Without others they stay.
    several = processes.count() > 1
    parts = setup.config.capsule_shards
    whole = NamedSharding(mesh_of(setup.devices, parts), PartitionSpec())
    results = whole if several else None

    @functools.partial(jax.jit, out_shardings=results)
    def evaluate_batches(variables, images, labels, count):
        """Metrics ``[B, N]`` of the first ``count`` of N batches, images ``[B, N, ...]``."""

        def one(n):
            x, y = images[:, n], labels[:, n]
            return step(variables, jax.vmap(pipeline.input)(x), jax.vmap(pipeline.label)(x, y))

        def put(n, out):
            return jax.tree.map(lambda all, x: all.at[:, n].set(x), out, one(n))

        out = jax.eval_shape(one, 0)
        out = jax.tree.map(lambda x: jnp.zeros((size, BATCHES), x.dtype), out)
        return jax.lax.fori_loop(0, count, put, out)

    def evaluate(variables, images, labels):
        if several and isinstance(images, StoredImages):
            images = InPart(images, own_rows(size, setup.devices, parts), size)

        def many(examples, count):
            # Batch n is column n, so that the rows can be divided among devices.
            columns = (x.reshape(BATCHES, size, *x.shape[1:]).swapaxes(0, 1) for x in examples)
            images, labels = split_batch(tuple(columns), setup.devices, parts)
            out = evaluate_batches(variables, images, labels, -(-count // size))
            return jax.tree.map(lambda x: np.asarray(x).T.ravel(), out)

        return map_batches(many, (images, labels), BATCHES * size)

    return evaluate
