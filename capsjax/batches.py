"""Applying a function of a fixed batch size to any number of examples."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def map_batches(function: Callable[[Any, int], Any], arrays: Any, batch_size: int) -> Any:
    """Applies a function to batches of one size and joins the results.

    The last batch is filled up with examples from the beginning, and the results of the filling
    are cut off, so that one compiled program serves all batches and every example counts once.

    Args:
      function: ``(batch, count) -> results``; the first ``count`` rows of the batch are to be
        computed, the others fill it up.
      arrays: pytree of arrays ``[N, ...]``, N at least 1.
      batch_size: rows of every batch.

    Returns:
      A pytree of arrays ``[N, ...]``, of NumPy where the function returns NumPy.
    """
    total = len(jax.tree.leaves(arrays)[0])
    parts = []
    for start in range(0, total, batch_size):
        rows = np.arange(start, start + batch_size) % total
        batch = jax.tree.map(lambda x, rows=rows: x[rows], arrays)
        parts.append(function(batch, min(batch_size, total - start)))

    def join(*leaves):
        numpy = all(isinstance(leaf, np.ndarray) for leaf in leaves)
        return (np if numpy else jnp).concatenate(leaves)[:total]

    return jax.tree.map(join, *parts)
