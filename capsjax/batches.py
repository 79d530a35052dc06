"""Computation in batches of one size, so that one compilation serves any number of rows."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np


def map_batches(function: Callable[[Any, int], Any], arrays: Any, batch_size: int) -> Any:
    """Apply a function to batches of rows and concatenate its results.

    Every batch has exactly ``batch_size`` rows. The last one is filled with rows from the start of
    the arrays, which are left out of the results.

    Args:
      function: ``function(batch, count)`` takes ``batch_size`` rows of every array, of which the
        first ``count`` are not filling, and returns arrays with a result in each row.
      arrays: a pytree of arrays ``[N, ...]``, of NumPy or JAX, N at least 1. Under ``jax.jit`` they
        may be traced.
      batch_size: the number of rows of a batch, at least 1; it may be larger than N.

    Returns:
      The pytree that the function returns, with arrays ``[N, ...]``: of NumPy where the function
      returns these, otherwise of JAX.

    Raises:
      ValueError: there are no rows, or the batch size is below 1.
      AssertionError: the arrays differ in N.

    Example:
      >>> map_batches(lambda batch, count: batch.sum(axis=1), jnp.ones((5, 2)), 3).tolist()
      [2.0, 2.0, 2.0, 2.0, 2.0]
    """
    leaves = jax.tree.leaves(arrays)
    rows = len(leaves[0]) if leaves else 0
    if not rows:
        raise ValueError("there are no rows to divide into batches")
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, not {batch_size}")
    chex.assert_equal_shape_prefix(leaves, 1)
    parts = []
    for start in range(0, rows, batch_size):
        chosen = np.arange(start, start + batch_size) % rows
        batch = jax.tree.map(lambda x, chosen=chosen: x[chosen], arrays)
        parts.append(function(batch, min(batch_size, rows - start)))
    return jax.tree.map(lambda *results: _concatenate(results)[:rows], *parts)


def _concatenate(arrays):
    numpy = all(isinstance(x, np.ndarray) for x in arrays)
    return np.concatenate(arrays) if numpy else jnp.concatenate(arrays)
