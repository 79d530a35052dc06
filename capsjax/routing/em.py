"""EM routing (Hinton, Sabour & Frosst 2018): output capsules are Gaussians over votes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from capsjax.routing.base import Routing, RoutingTraits, check_iterations
from capsjax.routing.moments import moments, sums

VARIANCE_FLOOR = 1e-6
DEFAULT_INVERSE_TEMPERATURE = 0.01


class State(NamedTuple):
    """Parameters of the Gaussians."""

    mean: jax.Array  # [J, D]
    variance: jax.Array  # [J, D]
    activation_logit: jax.Array  # [J]


def em(iterations: int = 3, *, inverse_temperature: float | None = None) -> Routing:
    r"""Returns EM routing.

    Hinton, Sabour & Frosst, "Matrix Capsules with EM Routing" (ICLR 2018). Starting
    from :math:`r_{ij} = 1/J`, repeat the M-step, with :math:`R_{ij} = r_{ij} a_i`,

    .. math::
       \mu_j = \frac{\sum_i R_{ij} \hat u_{j|i}}{\sum_i R_{ij}}, \quad
       \sigma_{jd}^2 = \frac{\sum_i R_{ij} (\hat u_{jd|i} - \mu_{jd})^2}{\sum_i R_{ij}} + 10^{-6},
       \quad
       a_j = \mathrm{sigmoid}\Big(\lambda_t \Big(\beta_{a,j} - \sum_d (\beta_{u,j}
       + \log \sigma_{jd}) \sum_i R_{ij}\Big)\Big)

    and, between two of them, the E-step

    .. math::
       r_i = \mathrm{softmax}_j \Big(\log a_j - \sum_d \Big(
       \frac{(\hat u_{jd|i} - \mu_{jd})^2}{2 \sigma_{jd}^2} + \log \sigma_{jd}
       + \tfrac12 \log 2 \pi \Big)\Big)

    with :math:`\lambda_t = \lambda (1 - 0.95^t)`, t = 1, 2, ..., as in Gritzman (2019). The
    computation uses logarithms, and the variance is computed around the mean of the pass before
    (:mod:`capsjax.routing.moments`), so float32 is enough.

    Parameters: ``beta_u``, ``beta_a`` ``[J]``, initially zero. R passes, each an E-step and an
    M-step. Pitfalls: activations saturate when lambda times the number of input capsules is large;
    in a convolutional layer input capsules must compete for the output capsules at all positions
    that see them (:class:`capsjax.conv_capsules.ConvCapsules` does that); two iterations are often
    better than three.

    Args:
      iterations: the number of M-steps.
      inverse_temperature: lambda. None: 0.01, and in a layer the value that gives the cost, a sum
        over input capsules, the range that 0.01 gives it where each output capsule has 115 of
        them (MNIST's 1152 for 10). With a fixed 0.01 all activations of small layers stay near
        1/2. With 0 they are 1/2.

    Raises:
      ValueError: iterations below one.
    """
    check_iterations(iterations)
    final = DEFAULT_INVERSE_TEMPERATURE if inverse_temperature is None else inverse_temperature

    def init_params(key, sizes):
        return {"beta_u": jnp.zeros(sizes.J), "beta_a": jnp.zeros(sizes.J)}

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
        annealed = final * (1 - 0.95 ** (t + 1))
        return State(m.mean, variance, annealed * (params["beta_a"] - cost))

    def for_sizes(sizes, votes):
        scaled = DEFAULT_INVERSE_TEMPERATURE * 115.2 * sizes.J / sizes.I
        return em(iterations, inverse_temperature=scaled)

    return Routing(
        "em",
        iterations,
        init=init,
        logits=logits,
        accumulate=accumulate,
        update=update,
        finalize=lambda params, state: (state.mean, jax.nn.sigmoid(state.activation_logit)),
        init_params=init_params,
        for_sizes=for_sizes if inverse_temperature is None else None,
        traits=RoutingTraits(
            loss="spread",
            squash_primary=False,
            poses_are_means=True,
            compete_across_positions=True,
            # Votes as long as poses, from weights of standard deviation 0.1.
            init_scale=lambda sizes: 10 / sizes.K**0.5,
        ),
    )
