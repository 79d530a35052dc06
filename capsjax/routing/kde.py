"""Routing by weighted kernel density estimation (Zhang, Zhao, Wu & Zhou 2018)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from capsjax.routing.base import Routing, RoutingTraits, check_iterations
from capsjax.routing.equations import agreement, quotient, weighted_sum
from capsjax.routing.initialization import SQUASHED_LENGTHS, scale_for
from capsjax.squash import safe_norm, squash_by_name


class State(NamedTuple):
    """Outputs, and the sums of them that the logits depend on."""

    v: jax.Array  # [J, D]
    total: jax.Array  # [J, D] sum of the v of all passes
    squares: jax.Array  # [J] sum of their squared lengths


def kde(iterations: int = 3, *, squash: str = "half", scale: float | None = None) -> Routing:
    r"""Returns routing by weighted kernel density estimation.

    Zhang, Zhao, Wu & Zhou, "Fast Dynamic Routing Based on Weighted Kernel Density Estimation"
    (2018).

    Starting from :math:`b = 0`, with the squashed votes :math:`q = \mathrm{squash}(\hat u)`, repeat

    .. math::
       c_i = \mathrm{softmax}_j(b_i), \quad
       v_j = \mathrm{squash}\Big(\frac{\sum_i c_{ij} \hat u_{j|i}}{\sum_i c_{ij}}\Big), \quad
       b_{ij} \leftarrow b_{ij} + 1 - \|q_{j|i} - v_j\|^2

    The kernel is Epanechnikov's. The paper's own updates (FRMS, FREM) could not be checked; this
    is the form of its successor with public code, NLP-Capsule (Zhao et al., ACL 2019), with a
    fixed number of passes and its squash. The logits are linear in sums of v and of its squares,
    so the outputs of earlier passes need not be kept.

    No parameters; R passes. Pitfall: outputs are means of votes, which are short; hence the factor.
    Safe for votes up to 1e15.

    Args:
      iterations: the number of passes.
      squash: of votes and outputs, a name of :data:`capsjax.squash.SQUASHES`.
      scale: factor on the mean of the votes in v_j, see :func:`~capsjax.routing.dynamic.dynamic`.

    Raises:
      ValueError: iterations below one, or an unknown name.
    """
    check_iterations(iterations)
    squash_fn, factor = squash_by_name(squash), 1.0 if scale is None else scale

    def init(params, first):
        zero = jnp.zeros_like(first.votes[0])
        return State(zero, zero, zero[:, 0])

    def logits(params, capsules, state, t):
        q = squash_fn(capsules.votes)
        own = t * (1 - jnp.sum(q * q, -1))
        return own + 2 * agreement(q, state.total) - state.squares[None]

    def accumulate(params, capsules, coupling, state, t):
        return jnp.sum(coupling, 0), weighted_sum(coupling, capsules.votes)

    def update(params, stats, state, t):
        weight, weighted = stats
        mean = quotient(weighted, jnp.maximum(weight, jnp.finfo(weight.dtype).tiny ** 0.5)[:, None])
        v = squash_fn(factor * mean)
        return State(v, state.total + v, state.squares + jnp.sum(v * v, -1))

    def for_sizes(sizes, votes):
        def length(scale):  # short votes have short q, so that couplings stay almost even
            return SQUASHED_LENGTHS[squash](scale * votes.total / sizes.I)

        found = scale_for(length, votes, passes=1, squash=squash)
        return kde(iterations, squash=squash, scale=found)

    return Routing(
        "kde",
        iterations,
        init=init,
        logits=logits,
        accumulate=accumulate,
        update=update,
        finalize=lambda params, state: (state.v, safe_norm(state.v)),
        for_sizes=for_sizes if scale is None else None,
        traits=RoutingTraits(poses_are_means=True),
    )
