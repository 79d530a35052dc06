"""Routing by weighted kernel density estimation (Zhang, Zhao, Wu & Zhou 2018)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from capsjax.routing.base import Routing
from capsjax.routing.dynamic import check_iterations
from capsjax.squash import safe_norm, squash


class State(NamedTuple):
    v: jax.Array  # [J, D]
    total: jax.Array  # [J, D] sum of the v of all passes
    squares: jax.Array  # [J] sum of their squared lengths


def kde(iterations: int = 3) -> Routing:
    r"""Fast Dynamic Routing Based on Weighted Kernel Density Estimation (Zhang et al. 2018).

    With :math:`b = 0` at first and the squashed votes :math:`q = \mathrm{squash}(\hat u)`, repeat

    .. math::
       c_i = \mathrm{softmax}_j(b_i), \quad
       v_j = \mathrm{squash}\Big(\frac{\sum_i c_{ij} \hat u_{j|i}}{\sum_i c_{ij}}\Big), \quad
       b_{ij} \leftarrow b_{ij} + 1 - \|q_{j|i} - v_j\|^2

    The kernel is Epanechnikov's. The paper's own updates (FRMS, FREM) could not be checked; this
    is the form of its successor with public code, NLP-Capsule (Zhao et al., ACL 2019), with a
    fixed number of passes. The logits are linear in sums of v and of its squares, so that passes
    need not be remembered.

    No parameters; R passes. Pitfall: outputs are means of votes, hence as short as votes are;
    transformation matrices must start larger than for dynamic routing.

    Args:
      iterations: passes.

    Raises:
      ValueError: iterations below one.
    """
    check_iterations(iterations)

    def init(params, first):
        zero = jnp.zeros_like(first.votes[0])
        return State(zero, zero, zero[:, 0])

    def logits(params, children, state, t):
        q = squash(children.votes)
        own = t * (1 - jnp.sum(q * q, -1))
        return own + 2 * jnp.einsum("ijd,jd->ij", q, state.total) - state.squares[None]

    def accumulate(params, children, coupling, state, t):
        return jnp.sum(coupling, 0), jnp.einsum("ij,ijd->jd", coupling, children.votes)

    def update(params, stats, state, t):
        weight, weighted = stats
        v = squash(weighted / jnp.maximum(weight, jnp.finfo(weight.dtype).tiny)[:, None])
        return State(v, state.total + v, state.squares + jnp.sum(v * v, -1))

    return Routing(
        "kde",
        iterations,
        means=True,
        init=init,
        logits=logits,
        accumulate=accumulate,
        update=update,
        finalize=lambda params, state: (state.v, safe_norm(state.v)),
    )
