"""Routing by agreement: Procedure 1 of "Dynamic Routing Between Capsules".

Every function is written for one example; batch with :func:`jax.vmap`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from capsjax.squash import safe_norm, squash

GRADIENTS = ("full", "stop", "last")
NORMALIZERS = ("softmax", "leaky")


class RoutingOutput(NamedTuple):
    """What a routing algorithm gives back for one example."""

    pose: jax.Array  # [J, D] outputs v_j of the output capsules
    activation: jax.Array  # [J] in [0, 1): probability that the entity is present
    # [I, J] coupling coefficients of the last iteration; None from the implementations
    # that never hold all of them.
    coupling: jax.Array | None


def coupling_coefficients(
    logits: chex.Array, normalizer: str = "softmax", axis: int = 1
) -> jax.Array:
    r"""How each input capsule divides itself among the output capsules.

    .. math:: c_{ij} = \exp(b_{ij}) / (\lambda + \textstyle\sum_k \exp(b_{ik}))

    ``softmax`` (lambda = 0) is equation 3 of the paper: over the *parents* j, so that the
    coefficients of one input capsule sum to one. ``leaky`` (lambda = 1) is the authors'
    code for CIFAR-10: one more parent with logit zero, whose share is dropped, takes what
    belongs to none of the others.

    Args:
      logits: ``[I, J]``. normalizer: softmax or leaky. axis: the axis of the parents.

    Returns:
      Coupling coefficients, of the shape of ``logits``.
    """
    check_choice("normalizer", normalizer, NORMALIZERS)
    if normalizer == "softmax":
        return jax.nn.softmax(logits, axis)
    nobody = jnp.zeros_like(jax.lax.slice_in_dim(logits, 0, 1, axis=axis))
    shares = jax.nn.softmax(jnp.concatenate([logits, nobody], axis), axis)
    return jax.lax.slice_in_dim(shares, 0, logits.shape[axis], axis=axis)


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
    prior: chex.Array | None = None,
    bias: chex.Array | None = None,
    normalizer: str = "softmax",
    gradient: str = "full",
) -> RoutingOutput:
    r"""Routing by agreement for one example.

    Starting from :math:`b_{ij} = 0` or a prior, repeat

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
      prior: first logits ``[I, J]``, or None for zero.
      bias: ``[J, D]``, added to s_j in every iteration, or None.
      normalizer: see :func:`coupling_coefficients`.
      gradient: what is differentiated. ``full``: everything, as the authors do.
        ``stop``: the coupling coefficients count as constants. ``last``: the last
        agreement is differentiated, the outputs of earlier iterations are constants.
        The three give the same value.

    Returns:
      :class:`RoutingOutput`.

    Raises:
      ValueError: iterations below one, an unknown gradient or normalizer.
      AssertionError: wrong shape of votes, prior or bias.

    Example:
      >>> votes = jnp.stack([jnp.ones((5, 4)), -jnp.ones((5, 4))], axis=1)  # I=5, J=2, D=4
      >>> dynamic_routing(votes, iterations=3).pose.shape
      (2, 4)
    """
    chex.assert_rank(votes, 3)
    check_options(iterations, normalizer, gradient)
    if prior is not None:
        chex.assert_shape(prior, votes.shape[:2])
    if bias is not None:
        chex.assert_shape(bias, votes.shape[1:])

    logits = jnp.zeros(votes.shape[:2], votes.dtype) if prior is None else prior
    for iteration in range(iterations):
        coupling = coupling_coefficients(logits, normalizer)
        if gradient == "stop":
            coupling = jax.lax.stop_gradient(coupling)
        s = weighted_sum(coupling, votes)
        v = squash(s if bias is None else s + bias)
        if iteration + 1 < iterations:
            logits += agreement(votes, jax.lax.stop_gradient(v) if gradient == "last" else v)
    return RoutingOutput(pose=v, activation=safe_norm(v), coupling=coupling)


def check_options(iterations: int, normalizer: str, gradient: str) -> None:
    """Raise ValueError for values that :func:`dynamic_routing` does not know."""
    if iterations < 1:
        raise ValueError(f"iterations must be 1 or more, not {iterations}")
    check_choice("normalizer", normalizer, NORMALIZERS)
    check_choice("gradient", gradient, GRADIENTS)


def check_choice(argument: str, value: str, legal: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is one of the legal ones."""
    if value not in legal:
        raise ValueError(f"{argument} must be one of {', '.join(legal)}, not {value!r}")
