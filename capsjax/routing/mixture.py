"""Algorithms whose output capsules are Gaussians over votes: EM and variational Bayes."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from capsjax.routing.base import Routing
from capsjax.routing.moments import sums


class Gaussians(NamedTuple):
    """What the couplings of a pass depend on, and where its moments are taken."""

    mean: jax.Array  # [J, D]
    twice_variance: jax.Array  # [J, D]
    log_weight: jax.Array  # [J] log density at the mean, and logarithm of the share of the capsule
    shift: jax.Array  # [J, D] around which the sums are taken, see :mod:`capsjax.routing.moments`


def by_mixture(name: str, passes: int, *, gaussians: Callable, **fields) -> Routing:
    r"""Returns a routing whose logits are log densities and whose statistics are moments.

    .. math:: b_{ij} = w_j - \sum_d \frac{(\hat u_{jd|i} - \mu_{jd})^2}{2 \sigma_{jd}^2}, \quad
              S_j = \sum_i c_{ij} a_i \big(1, d_{j|i}, d_{j|i}^2\big)

    with :math:`d_{j|i} = \hat u_{j|i} - s_j` and s the shift. The logits of the first pass are
    zero.

    Args:
      name, passes: of the algorithm.
      gaussians: ``(params, state) -> Gaussians``.
      **fields: the other fields of :class:`~capsjax.routing.Routing`.
    """

    def logits(params, capsules, state, t):
        if t == 0:
            return jnp.zeros(capsules.votes.shape[:2], capsules.votes.dtype)
        g = gaussians(params, state)
        distance = jnp.square(capsules.votes - g.mean[None]) / g.twice_variance[None]
        return g.log_weight[None] - jnp.sum(distance, -1)

    def accumulate(params, capsules, coupling, state, t):
        weights = coupling * capsules.activation[:, None]
        return sums(weights, capsules.votes, gaussians(params, state).shift)

    return Routing(
        name, passes, gaussians=gaussians, logits=logits, accumulate=accumulate, **fields
    )
