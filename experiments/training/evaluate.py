"""Metrics of held-out examples, many batches in one call."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from capsjax import train
from experiments.tasks.base import Setup
from experiments.training.devices import split_batch

BATCH = 128
BATCHES = 8  # in one call, which fetches its scratch memory once


def evaluator(setup: Setup) -> Callable:
    """``evaluate(params, images, labels)``: metrics of raw examples, NumPy arrays ``[N]``.

    The last batch is filled up and the filling cut off, so every example counts once.
    """
    size = -(-BATCH // len(setup.devices)) * len(setup.devices)
    step, stream = train.make_eval_step(setup.measure), setup.stream

    @jax.jit
    def several(params, images, labels, count):
        """Metrics ``[B, N]`` of the first ``count`` of N batches, images ``[B, N, ...]``."""

        def one(n):
            x, y = images[:, n], labels[:, n]
            return step(params, jax.vmap(stream.input)(x), jax.vmap(stream.label)(x, y))

        def put(n, out):
            return jax.tree.map(lambda all, x: all.at[:, n].set(x), out, one(n))

        out = jax.eval_shape(one, 0)
        out = jax.tree.map(lambda x: jnp.zeros((size, BATCHES), x.dtype), out)
        return jax.lax.fori_loop(0, count, put, out)

    def evaluate(params, images, labels):
        batches, found = -(-len(labels) // size), []
        for start in range(0, batches, BATCHES):
            # Example n is in column n // size. Columns that only fill up are not computed.
            rows = np.arange(BATCHES * size).reshape(-1, size).T + start * size
            rows %= len(labels)
            chunk = split_batch((images[rows], labels[rows]), setup.devices)
            out = several(params, *chunk, min(BATCHES, batches - start))
            found.append({name: np.asarray(x).T.ravel() for name, x in out.items()})
        return {
            name: np.concatenate([part[name] for part in found])[: len(labels)] for name in found[0]
        }

    return evaluate
