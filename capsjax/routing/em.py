"""EM routing (Hinton, Sabour & Frosst 2018): output capsules are Gaussians over votes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from capsjax.routing.base import Routing, RoutingTraits, check_iterations
from capsjax.routing.moments import moments, sums

VARIANCE_FLOOR = 1e-9
# With lambda of 0.01 about half of the capsules are active at first, as Hinton et al. intend.
INITIAL_BETA_A = -1000.0
INPUTS_PER_OUTPUT = 100  # for which Gritzman (2019) takes the cost as it is


class State(NamedTuple):
    """Parameters of the Gaussians."""

    mean: jax.Array  # [J, D]
    variance: jax.Array  # [J, D]
    activation_logit: jax.Array  # [J]


def em(
    iterations: int = 3, *, inverse_temperature: float = 0.01, cost_scale: float | None = None
) -> Routing:
    r"""Returns EM routing.

    Hinton, Sabour & Frosst, "Matrix Capsules with EM Routing" (ICLR 2018). Starting
    from :math:`r_{ij} = 1/J`, repeat the M-step, with :math:`R_{ij} = r_{ij} a_i`,

    .. math::
       \mu_j = \frac{\sum_i R_{ij} \hat u_{j|i}}{\sum_i R_{ij}}, \quad
       \sigma_{jd}^2 = \frac{\sum_i R_{ij} (\hat u_{jd|i} - \mu_{jd})^2}{\sum_i R_{ij}} + 10^{-9},
       \quad
       a_j = \mathrm{sigmoid}\Big(\lambda_t \Big(\beta_{a,j} - \gamma \sum_d (\beta_{u,j}
       + \log \sigma_{jd}) \sum_i R_{ij}\Big)\Big)

    and, between two of them, the E-step

    .. math::
       r_i = \mathrm{softmax}_j \Big(\log a_j - \sum_d \Big(
       \frac{(\hat u_{jd|i} - \mu_{jd})^2}{2 \sigma_{jd}^2} + \log \sigma_{jd}
       + \tfrac12 \log 2 \pi \Big)\Big)

    with :math:`\lambda_t = \lambda (1 - 0.95^t)`, t = 1, 2, ..., and the variance floor, the
    schedule and, in a layer, :math:`\gamma = 100 J / I` of Gritzman, "Avoiding Implementation
    Pitfalls of Matrix Capsules with EM Routing" (2019): the cost is a sum over input capsules, and
    gamma gives it the same range in every layer. The computation uses logarithms, and the variance
    is computed around the mean of the pass before (:mod:`capsjax.routing.moments`), so float32 is
    enough.

    Parameters: ``beta_u``, initially zero, and ``beta_a``, initially -1,000, ``[J]``. R passes,
    each an E-step and an M-step. Pitfalls: activations saturate when lambda times the number of
    input capsules is large; in a convolutional layer input capsules must compete for the output
    capsules at all positions that see them (:class:`capsjax.conv_capsules.ConvCapsules` does
    that); two iterations are often better than three. Safe for votes up to 1e9.

    Not as published: beta_a starts at the mean of Gritzman's initial values, whose deviation is
    500; poses and primary capsules have no batch normalization.

    Args:
      iterations: the number of M-steps.
      inverse_temperature: lambda. With 0 all activations are 1/2.
      cost_scale: gamma. None: 1, as in the paper, and in a layer 100 J / I.

    Raises:
      ValueError: iterations below one.
    """
    check_iterations(iterations)
    scale = 1 if cost_scale is None else cost_scale

    def init_params(key, sizes):
        return {"beta_u": jnp.zeros(sizes.J), "beta_a": jnp.full(sizes.J, INITIAL_BETA_A)}

    def init(params, first):
        zero = jnp.zeros_like(first.votes[0, :, 0])
        return State(first.votes[0], jnp.ones_like(first.votes[0]), zero)

    def logits(params, capsules, state, t):
        if t == 0:
            return jnp.zeros(capsules.votes.shape[:2], capsules.votes.dtype)
        distance = jnp.square(capsules.votes - state.mean[None]) / (2 * state.variance[None])
        normalizer = jnp.sum(jnp.log(2 * jnp.pi * state.variance), -1) / 2
        log_a = jax.nn.log_sigmoid(state.activation_logit)
        return (log_a - normalizer)[None] - jnp.sum(distance, -1)

    def accumulate(params, capsules, coupling, state, t):
        return sums(coupling * capsules.activation[:, None], capsules.votes, state.mean)

    def update(params, stats, state, t):
        m = moments(stats, state.mean)
        variance = m.variance + VARIANCE_FLOOR
        D = variance.shape[1]
        cost = (D * params["beta_u"] + jnp.sum(jnp.log(variance), -1) / 2) * m.weight
        annealed = inverse_temperature * (1 - 0.95 ** (t + 1))
        return State(m.mean, variance, annealed * (params["beta_a"] - scale * cost))

    def for_sizes(sizes, votes):
        return em(
            iterations,
            inverse_temperature=inverse_temperature,
            cost_scale=INPUTS_PER_OUTPUT * sizes.J / sizes.I,
        )

    return Routing(
        "em",
        iterations,
        init=init,
        logits=logits,
        accumulate=accumulate,
        update=update,
        finalize=lambda params, state: (state.mean, jax.nn.sigmoid(state.activation_logit)),
        init_params=init_params,
        for_sizes=for_sizes if cost_scale is None else None,
        traits=RoutingTraits(
            loss="spread",
            primary_squash="none",
            primary_activation="sigmoid",
            poses_are_means=True,
            compete_across_positions=True,
            # Votes as long as poses, from weights of standard deviation 0.1.
            init_scale=lambda sizes: 10 / sizes.K**0.5,
        ),
    )
