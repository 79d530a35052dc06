"""EM routing (Hinton, Sabour & Frosst 2018): output capsules are Gaussians over votes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from capsjax.routing.base import Routing
from capsjax.routing.dynamic import check_iterations
from capsjax.routing.moments import moments, sums

VARIANCE_FLOOR = 1e-6


class State(NamedTuple):
    mean: jax.Array  # [J, D]
    variance: jax.Array  # [J, D]
    activation_logit: jax.Array  # [J]


def em(iterations: int = 3, *, inverse_temperature: float | None = None) -> Routing:
    r"""Matrix Capsules with EM Routing (Hinton, Sabour & Frosst, ICLR 2018).

    With :math:`r_{ij} = 1/J` at first, repeat the M-step, with :math:`R_{ij} = r_{ij} a_i`,

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

    with :math:`\lambda_t = \lambda (1 - 0.95^t)`, t = 1, 2, ..., as in Gritzman (2019). All in
    logarithms; the variance is computed around the mean of the pass before
    (:mod:`capsjax.routing.moments`), so float32 is enough.

    Parameters: ``beta_u``, ``beta_a`` ``[J]``, zero at first. R passes, an E-step and an M-step
    in one. Pitfalls: activations saturate when lambda times the number of children is large; in a
    convolutional layer children must compete for parents at all positions that see them
    (:class:`capsjax.conv_capsules.ConvCapsules` does); two iterations often beat three.

    Args:
      iterations: M-steps.
      inverse_temperature: lambda. None: 0.01, and in a layer what gives the cost, a sum over
        input capsules, the range that 0.01 gives it where each output capsule has 115 (MNIST's
        1152 for 10). With a fixed 0.01 activations of small layers all stay near 1/2.

    Raises:
      ValueError: iterations below one.
    """
    check_iterations(iterations)

    def init_params(key, sizes):
        return {"beta_u": jnp.zeros(sizes.J), "beta_a": jnp.zeros(sizes.J)}

    def init(params, first):
        zero = jnp.zeros_like(first.votes[0, :, 0])
        return State(first.votes[0], jnp.ones_like(first.votes[0]), zero)

    def logits(params, children, state, t):
        if t == 0:
            return jnp.zeros(children.votes.shape[:2], children.votes.dtype)
        distance = jnp.square(children.votes - state.mean[None]) / (2 * state.variance[None])
        normalizer = jnp.sum(jnp.log(2 * jnp.pi * state.variance), -1) / 2
        log_a = jax.nn.log_sigmoid(state.activation_logit)
        return (log_a - normalizer)[None] - jnp.sum(distance, -1)

    def accumulate(params, children, coupling, state, t):
        return sums(coupling * children.activation[:, None], children.votes, state.mean)

    def update(params, stats, state, t):
        m = moments(stats, state.mean)
        variance = m.variance + VARIANCE_FLOOR
        D = variance.shape[1]
        cost = (D * params["beta_u"] + jnp.sum(jnp.log(variance), -1) / 2) * m.weight
        warmth = (inverse_temperature or 0.01) * (1 - 0.95 ** (t + 1))
        return State(m.mean, variance, warmth * (params["beta_a"] - cost))

    def fit(sizes):
        return em(iterations, inverse_temperature=0.01 * 115.2 * sizes.J / sizes.I)

    return Routing(
        "em",
        iterations,
        init=init,
        logits=logits,
        accumulate=accumulate,
        update=update,
        finalize=lambda params, state: (state.mean, jax.nn.sigmoid(state.activation_logit)),
        init_params=init_params,
        fit=fit if inverse_temperature is None else None,
        loss="spread",
        field=True,
        squashes=False,
        means=True,
        # Votes as long as poses, from weights of standard deviation 0.1.
        gain=lambda sizes: 10 / sizes.K**0.5,
    )
