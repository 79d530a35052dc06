"""A batch in pieces: sums over the batch, with the memory of one piece.

A mean over a batch is the mean of the means over equal pieces of it. What a network draws at random
for a batch must not depend on the pieces, so a network draws with :func:`bernoulli`, which gives
each piece its rows of what would be drawn for the whole batch.
"""

import contextlib
import contextvars
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

_piece = contextvars.ContextVar("piece", default=None)


def mean_over_pieces(function: Callable[[Any], Any], batch: Any, pieces: int) -> Any:
    """Computes the mean of a function over equal pieces of a batch, one after another.

    Piece p holds the examples p, p + pieces, and so on. If a compiler has divided the batch among
    devices, each of them therefore has its part of every piece.

    Args:
      function: of a piece; returns a pytree of floating arrays.
      batch: pytree of arrays ``[B, ...]``.
      pieces: a divisor of B.

    Raises:
      ValueError: the batch cannot be divided.
    """
    size = jax.tree.leaves(batch)[0].shape[0]
    if size % pieces:
        raise ValueError(f"a batch of {size} can't be divided into {pieces} equal pieces")
    columns = jax.tree.map(
        lambda x: x.reshape(size // pieces, pieces, *x.shape[1:]).swapaxes(0, 1), batch
    )

    def of_piece(part, number):
        with _drawing_for(number, pieces):
            return function(part)

    def add(total, piece):
        return jax.tree.map(jnp.add, total, of_piece(*piece)), None

    first = jax.tree.map(lambda x: x[0], columns)
    shapes = jax.eval_shape(of_piece, first, 0)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, (columns, jnp.arange(pieces)))
    return jax.tree.map(lambda x: x / pieces, total)


@contextlib.contextmanager
def _drawing_for(number, pieces):
    token = _piece.set((number, pieces))
    try:
        yield
    finally:
        _piece.reset(token)


def bernoulli(key: chex.PRNGKey, p: float, shape: tuple[int, ...]) -> jax.Array:
    """Draws booleans for a batch or, inside of :func:`mean_over_pieces`, for a piece of it.

    Args:
      key: of the whole batch.
      p: probability of True.
      shape: ``[B, ...]`` of the batch or the piece.
    """
    if _piece.get() is None:
        return jax.random.bernoulli(key, p, shape)
    number, pieces = _piece.get()
    size, *rest = shape
    every = jax.random.bernoulli(key, p, (size * pieces, *rest))
    return every.reshape(size, pieces, *rest)[:, number]
