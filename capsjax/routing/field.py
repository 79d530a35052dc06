"""Routing of convolutional layers whose positions compete for the input capsules."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np

from capsjax.routing.base import Routing


def field_index(grid: tuple[int, int], types: int, kernel: int, stride: int) -> np.ndarray:
    """Returns the numbers ``[P, k k T]`` of the input capsules that each position sees.

    Args:
      grid: (H, W) of the input capsules, numbered row by row, types last.
      types: T.
      kernel, stride: of the layer; P positions, row by row.

    Example:
      >>> field_index((1, 3), 2, 1, 2).tolist()
      [[0, 1], [4, 5]]
    """
    H, W = grid
    capsules = np.arange(H * W * types).reshape(H, W, types)
    rows = range(0, H - kernel + 1, stride)
    columns = range(0, W - kernel + 1, stride)
    seen = [capsules[r : r + kernel, c : c + kernel].ravel() for r in rows for c in columns]
    return np.stack(seen)


def field_softmax(logits: chex.Array, index: np.ndarray) -> jax.Array:
    r"""Computes the softmax over the output capsules at all positions that see an input capsule.

    .. math:: c_{pnj} = \exp(b_{pnj}) / \textstyle\sum_{p'n'j'} \exp(b_{p'n'j'})

    over all (p', n') that show the same input capsule as (p, n). Gritzman, "Avoiding
    Implementation Pitfalls of Matrix Capsules with EM Routing" (2019): with a softmax at each
    position, an input capsule would count once for every position that sees it.

    Args:
      logits: ``[P, n, J]``.
      index: :func:`field_index`, ``[P, n]``.

    Raises:
      AssertionError: the ranks or the sizes P and n do not agree.
    """
    chex.assert_rank([logits, index], [3, 2])
    chex.assert_equal_shape_prefix([logits, index], 2)
    flat, capsules = index.ravel(), int(index.max()) + 1

    def back(x):
        return x[flat].reshape(index.shape)[:, :, None]

    largest = jax.ops.segment_max(jnp.max(logits, -1).ravel(), flat, capsules)
    e = jnp.exp(logits - jax.lax.stop_gradient(back(largest)))
    return e / back(jax.ops.segment_sum(jnp.sum(e, -1).ravel(), flat, capsules))


def over_field(routing: Routing, index: np.ndarray) -> Routing:
    """Turns a routing of one position into a routing of all positions at once.

    Input capsules, couplings, statistics, states and outputs get a first axis P; parameters are
    shared. Only algorithms whose couplings are a softmax can compete across positions.

    Raises:
      ValueError: another normalizer.
    """
    if routing.normalizer != "softmax":
        raise ValueError(f"routing {routing.name!r} has no softmax to be taken over a field")

    def each(function, *axes):
        return lambda params, *args: jax.vmap(
            lambda *arrays: function(params, *arrays, *args[len(axes) :]), axes
        )(*args[: len(axes)])

    return dataclasses.replace(
        routing,
        init=each(routing.init, 0),
        logits=each(routing.logits, 0, 0),
        accumulate=each(routing.accumulate, 0, 0, 0),
        update=each(routing.update, 0, 0),
        finalize=each(routing.finalize, 0),
        normalizer=lambda logits: field_softmax(logits, index),
        first_normalizer="softmax" if routing.traits.starts_at_each_position else None,
        query=None,
        gaussians=None,
    )
