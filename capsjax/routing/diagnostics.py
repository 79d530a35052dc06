"""Diagnostics of routing: whether it is decided, has converged, and depends on the input.

They are computed from the :class:`~capsjax.routing.Trace` of a batch, that is from
``route(..., trace=True).aux``. Training computes none of them.
"""

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from capsjax.routing.base import Trace
from capsjax.squash import safe_norm


class Diagnostics(NamedTuple):
    """Diagnostics of a batch. Means are over examples and all capsules, unless stated otherwise."""

    # [R] mean of coupling_entropy: 1 where couplings are even, 0 where they are decided.
    entropy: jax.Array
    # mean |b_t - b_(t-1)| from the second pass on: figure A.1 of Sabour et al. (2017).
    logit_change: jax.Array
    # [R] mean of vote_agreement: 1 where all votes have the direction of their
    # output capsule; None without votes.
    agreement: jax.Array | None
    # Mean standard deviation, over the examples, of the last couplings. Near zero, routing
    # ignores its input: the coupling dynamics of Mitterreiter et al. (2023).
    spread_over_examples: jax.Array
    mean_coupling: jax.Array  # [I, J] mean over the examples of the last couplings
    activity: jax.Array  # [J] share of examples where an output capsule is active after R passes
    dead: jax.Array  # number of output capsules that are active in no example
    always_on: jax.Array  # number of output capsules that are active in all examples


def diagnose(
    trace: Trace, votes: chex.Array | None = None, *, threshold: float = 0.5
) -> Diagnostics:
    """Computes the diagnostics of a batch.

    Args:
      trace: of a batch: logits and coupling ``[B, R, I, J]``, pose ``[B, R, J, D]``, activation
        ``[B, R, J]``.
      votes: ``[B, I, J, D]``, only for ``agreement``.
      threshold: activation above which an output capsule is active; where activations are
        logits (``RoutingTraits.scores_are_logits``), 0.

    Returns:
      :class:`Diagnostics`.

    Example:
      >>> from capsjax.routing import dynamic, route
      >>> u, W = jnp.ones((2, 5, 8)), jnp.ones((5, 3, 16, 8))  # B=2, I=5, K=8, J=3, D=16
      >>> measure = lambda u, W: diagnose(route(dynamic(2), {}, u, W, trace=True).aux)
      >>> d = jax.jit(measure)(u, W)
      >>> d.entropy.tolist(), d.always_on.item()  # all votes are the same
      ([1.0, 1.0], 3)
    """
    chex.assert_rank(list(trace), [4, 4, 4, 3])
    B, R, I, J = trace.coupling.shape
    chex.assert_shape([trace.logits, trace.activation], [(B, R, I, J), (B, R, J)])
    last = trace.coupling[:, -1]
    active = trace.activation[:, -1] > threshold
    return Diagnostics(
        entropy=jnp.mean(coupling_entropy(trace.coupling), axis=(0, 2)),
        logit_change=jnp.mean(jnp.abs(jnp.diff(trace.logits, axis=1)), axis=(0, 2, 3)),
        agreement=None if votes is None else jnp.mean(vote_agreement(trace, votes), axis=(0, 2)),
        spread_over_examples=jnp.mean(jnp.std(last, axis=0)),
        mean_coupling=jnp.mean(last, axis=0),
        activity=jnp.mean(active, axis=0, dtype=trace.activation.dtype),
        dead=jnp.sum(~jnp.any(active, axis=0)),
        always_on=jnp.sum(jnp.all(active, axis=0)),
    )


def coupling_entropy(coupling: chex.Array) -> jax.Array:
    r"""Computes the entropy of the couplings of each input capsule, in units of the largest one.

    .. math:: H_i = -\frac{1}{\log J} \sum_j p_{ij} \log p_{ij}, \quad
              p_{ij} = c_{ij} / \textstyle\sum_k c_{ik}

    Args:
      coupling: ``[..., J]``, not below zero.

    Returns:
      ``[...]``, from 0, where one output capsule has everything, to 1, where all have the same.
      It is also 1 where an input capsule is coupled to nothing, and 0 where J is one.

    Example:
      >>> coupling_entropy(jnp.array([[0.5, 0.5], [0.2, 0.2], [1.0, 0.0]])).round(4).tolist()
      [1.0, 1.0, 0.0]
    """
    chex.assert_scalar_positive(coupling.ndim)
    J = coupling.shape[-1]
    if J == 1:
        return jnp.zeros_like(coupling[..., 0])
    total = jnp.sum(coupling, axis=-1, keepdims=True)
    p = jnp.where(total == 0, 1 / J, coupling / jnp.where(total == 0, 1, total))
    return jnp.sum(jax.scipy.special.entr(p), axis=-1) / math.log(J)


def vote_agreement(trace: Trace, votes: chex.Array) -> jax.Array:
    r"""Computes the mean cosine between an output capsule and its votes, weighted by couplings.

    .. math:: \sum_i c_{ij} \cos(\hat u_{j|i}, v_j) \Big/ \textstyle\sum_i c_{ij}

    Args:
      trace: of a batch, see :func:`diagnose`.
      votes: ``[B, I, J, D]``.

    Returns:
      ``[B, R, J]``, from -1 to 1. A vote or pose that is zero has cosine zero with everything, and
      an output capsule to which nothing is coupled has agreement zero.
    """
    B, R, I, J = trace.coupling.shape
    D = trace.pose.shape[-1]
    chex.assert_shape([trace.pose, votes], [(B, R, J, D), (B, I, J, D)])
    votes = votes.astype(trace.pose.dtype)
    cosine = jnp.einsum("bijd,brjd->brij", _direction(votes), _direction(trace.pose))
    total = jnp.sum(trace.coupling, axis=2)
    weighted = jnp.sum(trace.coupling * cosine, axis=2)
    return weighted / jnp.where(total == 0, 1, total)


def _direction(x):
    length = safe_norm(x, keepdims=True)
    return x / jnp.where(length == 0, 1, length)
