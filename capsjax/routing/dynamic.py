"""Routing by agreement: Procedure 1 of "Dynamic Routing Between Capsules".

Every function is written for one example; batch with :func:`jax.vmap`.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from capsjax.squash import safe_norm, squash

GRADIENTS = ("full", "stop", "last")


class RoutingOutput(NamedTuple):
    """What a routing algorithm gives back for one example."""

    pose: jax.Array  # [J, D] outputs v_j of the output capsules
    activation: jax.Array  # [J] in [0, 1): probability that the entity is present
    coupling: jax.Array  # [I, J] coupling coefficients of the last iteration


def coupling_coefficients(logits: chex.Array) -> jax.Array:
    r"""How each input capsule divides itself among the output capsules.

    .. math:: c_{ij} = \exp(b_{ij}) / \textstyle\sum_k \exp(b_{ik})

    Equation 3 of the paper. The softmax runs over the *parents* j: the coefficients
    of one input capsule sum to one.

    Args:
      logits: ``[I, J]``.

    Returns:
      Coupling coefficients ``[I, J]``.
    """
    chex.assert_rank(logits, 2)
    return jax.nn.softmax(logits, axis=1)


def weighted_sum(coupling: chex.Array, votes: chex.Array) -> jax.Array:
    r"""Total input of the output capsules, :math:`s_j = \sum_i c_{ij} \hat u_{j|i}`.

    Equation 2 (left) of the paper.

    Args:
      coupling: ``[I, J]``.
      votes: ``[I, J, D]``.

    Returns:
      ``[J, D]``.
    """
    return jnp.einsum("ij,ijd->jd", coupling, votes)


def agreement(votes: chex.Array, v: chex.Array) -> jax.Array:
    r"""Scalar products :math:`a_{ij} = \hat u_{j|i} \cdot v_j` of votes and outputs.

    Args:
      votes: ``[I, J, D]``.
      v: outputs of the output capsules, ``[J, D]``.

    Returns:
      ``[I, J]``.
    """
    return jnp.einsum("ijd,jd->ij", votes, v)


def dynamic_routing(
    votes: chex.Array,
    iterations: int = 3,
    *,
    bias: chex.Array | None = None,
    gradient: str = "full",
) -> RoutingOutput:
    r"""Routing by agreement for one example.

    Starting from :math:`b_{ij} = 0`, repeat

    .. math::
       c_i = \mathrm{softmax}(b_i), \quad
       s_j = \sum_i c_{ij} \hat u_{j|i} + \beta_j, \quad
       v_j = \mathrm{squash}(s_j), \quad
       b_{ij} \leftarrow b_{ij} + \hat u_{j|i} \cdot v_j

    Procedure 1 of Sabour, Frosst & Hinton (2017); :math:`\beta_j` is absent from the
    text and present in the authors' code. ``iterations=3`` computes s_j three times
    (the update of b after the last one would have no effect and is left out).

    Args:
      votes: prediction vectors ``[I, J, D]``.
      iterations: how often s_j is computed; a Python integer, one at least.
      bias: ``[J, D]``, added to s_j in every iteration, or None.
      gradient: what is differentiated. ``full``: everything, as the authors do.
        ``stop``: the coupling coefficients count as constants. ``last``: the last
        agreement is differentiated, the outputs of earlier iterations are constants.
        The three give the same value.

    Returns:
      :class:`RoutingOutput`.

    Raises:
      ValueError: iterations below one, or an unknown gradient.
      AssertionError: votes are not ``[I, J, D]``, or bias is not ``[J, D]``.

    Example:
      >>> votes = jnp.stack([jnp.ones((5, 4)), -jnp.ones((5, 4))], axis=1)  # I=5, J=2, D=4
      >>> dynamic_routing(votes, iterations=3).pose.shape
      (2, 4)
    """
    chex.assert_rank(votes, 3)
    if iterations < 1:
        raise ValueError(f"iterations must be 1 or more, not {iterations}")
    if gradient not in GRADIENTS:
        raise ValueError(f"gradient must be one of {', '.join(GRADIENTS)}, not {gradient!r}")
    if bias is not None:
        chex.assert_shape(bias, votes.shape[1:])

    logits = jnp.zeros(votes.shape[:2], votes.dtype)
    for iteration in range(iterations):
        coupling = coupling_coefficients(logits)
        if gradient == "stop":
            coupling = jax.lax.stop_gradient(coupling)
        s = weighted_sum(coupling, votes)
        v = squash(s if bias is None else s + bias)
        if iteration + 1 < iterations:
            logits += agreement(votes, jax.lax.stop_gradient(v) if gradient == "last" else v)
    return RoutingOutput(pose=v, activation=safe_norm(v), coupling=coupling)
