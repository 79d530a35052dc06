"""Procedure 1 of "Dynamic Routing Between Capsules" as the paper's text has it, step by step."""

import chex
import jax
import jax.numpy as jnp

from capsjax.routing.base import GRADIENTS, RoutingOutput, check_choice, check_iterations
from capsjax.routing.equations import agreement, weighted_sum
from capsjax.routing.normalizers import normalize
from capsjax.squash import safe_norm, squash


def dynamic_routing(
    votes: chex.Array,
    iterations: int = 3,
    *,
    prior: chex.Array | None = None,
    bias: chex.Array | None = None,
    normalizer: str = "softmax",
    gradient: str = "full",
) -> RoutingOutput:
    r"""Routes one example by agreement, literally as the paper writes it.

    Networks run :func:`~capsjax.routing.dynamic.dynamic`, the same algorithm as a
    :class:`~capsjax.routing.base.Routing`; tests compare the two.

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
      iterations: the number of times s_j is computed; a Python integer, at least one.
      prior: initial logits ``[I, J]``, or None for zero.
      bias: ``[J, D]``, added to s_j in every iteration, or None.
      normalizer: softmax, or another name of :data:`capsjax.routing.NORMALIZERS`.
      gradient: what is differentiated. ``full``: everything, as the authors do.
        ``stop``: the coupling coefficients count as constants. ``last``: the last
        agreement is differentiated; the outputs of earlier iterations are constants.
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
    check_iterations(iterations)
    check_choice("gradient", gradient, GRADIENTS)
    if prior is not None:
        chex.assert_shape(prior, votes.shape[:2])
    if bias is not None:
        chex.assert_shape(bias, votes.shape[1:])

    logits = jnp.zeros(votes.shape[:2], votes.dtype) if prior is None else prior
    for iteration in range(iterations):
        coupling = normalize(logits, normalizer)
        if gradient == "stop":
            coupling = jax.lax.stop_gradient(coupling)
        s = weighted_sum(coupling, votes)
        v = squash(s if bias is None else s + bias)
        if iteration + 1 < iterations:
            logits += agreement(votes, jax.lax.stop_gradient(v) if gradient == "last" else v)
    return RoutingOutput(pose=v, activation=safe_norm(v), coupling=coupling)
