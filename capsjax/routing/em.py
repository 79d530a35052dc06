"""EM routing (Hinton, Sabour & Frosst 2018): output capsules are Gaussians over votes."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from capsjax.routing.base import Routing, RoutingTraits, check_choice, check_iterations
from capsjax.routing.mixture import Gaussians, by_mixture
from capsjax.routing.moments import moments

INPUTS_PER_OUTPUT = 100  # for which Gritzman (2019) takes the cost as it is


class Constants(NamedTuple):
    """What the text of the paper leaves open. Parameters times their units are the betas."""

    # With lambda of 0.01 about half of the capsules are active at first, as Hinton et al. intend.
    beta_a: float = -1000.0  # initial value of the parameter
    beta_a_deviation: float = 0.0  # of its normal distribution, cut at two deviations
    beta_a_unit: float = 1.0
    beta_u: float = 0.0
    beta_u_glorot: bool = False  # drawn from Glorot's uniform distribution for J inputs, one output
    beta_u_unit: float = 1.0
    inverse_temperature: float = 0.01  # lambda
    cost_scale: float | None = None  # gamma; None: 100 J / I in a layer
    variance_floor: float = 1e-9
    kept: float = 0.0  # share of the mean of the pass before in the mean
    starts_at_each_position: bool = False  # see RoutingTraits


# Of the code that the authors of the paper released. Their cost has the logarithm of the variance,
# twice that of the deviation, and beta_u (1 + log(2 pi)).
_HINTON = Constants(
    beta_a=-0.5,
    beta_a_unit=5000.0,
    beta_u=0.5,
    beta_u_unit=(1 + math.log(2 * math.pi)) / 2,
    cost_scale=2.0,
    variance_floor=5e-4,
    kept=0.1,
    starts_at_each_position=True,
)
CONSTANTS: dict[str, Constants] = {
    "default": Constants(),
    # Of the code of Gritzman (2019).
    "gritzman": Constants(beta_a_deviation=500.0, beta_u_glorot=True),
    "hinton": _HINTON,
    "hinton_classes": _HINTON._replace(beta_a=-1.0, beta_u=2.0, inverse_temperature=0.0025),
}


class State(NamedTuple):
    """Parameters of the Gaussians."""

    mean: jax.Array  # [J, D]
    variance: jax.Array  # [J, D]
    activation_logit: jax.Array  # [J]


def em(
    iterations: int = 3,
    *,
    inverse_temperature: float | None = None,
    cost_scale: float | None = None,
    constants: str = "default",
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

    Not as published with the default constants: beta_a starts at the mean of Gritzman's initial
    values, whose deviation is 500; and a network normalizes the poses of its primary capsules over
    their components. Shorter poses lower the cost of all output capsules alike, by
    :math:`\log \sigma`; without this normalization two of three seeds of a small network unlearned
    the digits, with almost equal activations.

    Args:
      iterations: the number of M-steps.
      inverse_temperature: lambda; None: that of the constants, 0.01. With 0 all activations are
        1/2.
      cost_scale: gamma; None: that of the constants, which is 1, as in the paper, and in a layer
        100 J / I.
      constants: a key of :data:`CONSTANTS`: ``gritzman``, or ``hinton`` and ``hinton_classes``
        for the code that the authors of the paper released. There
        :math:`\beta_a = 5000 b_a`, :math:`\beta_u = b_u (1 + \log 2 \pi) / 2` with parameters b,
        gamma = 2, the variance floor is 0.0005, a mean is 0.9 of the weighted mean and 0.1 of the
        mean of the pass before, zero at first, around which the variance is taken, and couplings
        start at 1/J at each position.

    Raises:
      ValueError: iterations below one, or other constants.
    """
    check_iterations(iterations)
    check_choice("constants", constants, CONSTANTS)
    chosen = CONSTANTS[constants]
    cost_scale = chosen.cost_scale if cost_scale is None else cost_scale
    scale = 1 if cost_scale is None else cost_scale
    if inverse_temperature is None:
        inverse_temperature = chosen.inverse_temperature

    def update(params, stats, state, t):
        mean, variance, cost = _m_step(chosen, params, stats, state)
        annealed = inverse_temperature * (1 - 0.95 ** (t + 1))
        return State(mean, variance, annealed * (_betas(chosen, params)[0] - scale * cost))

    def for_sizes(sizes, votes):
        return em(
            iterations,
            inverse_temperature=inverse_temperature,
            cost_scale=INPUTS_PER_OUTPUT * sizes.J / sizes.I,
            constants=constants,
        )

    return by_mixture(
        "em",
        iterations,
        gaussians=_gaussians,
        init=functools.partial(_init, chosen),
        update=update,
        finalize=lambda params, state: (state.mean, jax.nn.sigmoid(state.activation_logit)),
        init_params=functools.partial(_initial_betas, chosen),
        for_sizes=for_sizes if cost_scale is None else None,
        traits=RoutingTraits(
            loss="spread",
            primary_squash="layer_norm" if constants == "default" else "none",
            primary_activation="sigmoid",
            poses_are_means=True,
            compete_across_positions=True,
            starts_at_each_position=chosen.starts_at_each_position,
            # Votes as long as poses, from weights of standard deviation 0.1.
            init_scale=lambda sizes: 10 / sizes.K**0.5,
        ),
    )


def _initial_betas(constants, key, sizes):
    """Return the parameters before training."""
    J = sizes.J
    beta_a, beta_u = jnp.full(J, constants.beta_a), jnp.full(J, constants.beta_u)
    if constants.beta_a_deviation:
        drawn = jax.random.truncated_normal(key, -2, 2, (J,))
        beta_a += constants.beta_a_deviation * drawn
    if constants.beta_u_glorot:
        most = (6 / (J + 1)) ** 0.5
        beta_u += jax.random.uniform(jax.random.fold_in(key, 1), (J,), minval=-most, maxval=most)
    return {"beta_u": beta_u, "beta_a": beta_a}


def _betas(constants, params):
    """Return beta_a and beta_u, the parameters in their units."""
    units = {"beta_a": constants.beta_a_unit, "beta_u": constants.beta_u_unit}
    return [params[name] if unit == 1 else unit * params[name] for name, unit in units.items()]


def _init(constants, params, first):
    zero = jnp.zeros_like(first.votes[0, :, 0])
    mean = jnp.zeros_like(first.votes[0]) if constants.kept else first.votes[0]
    return State(mean, jnp.ones_like(mean), zero)


def _gaussians(params, state):
    """What the E-step before its softmax consists of."""
    normalizer = jnp.sum(jnp.log(2 * jnp.pi * state.variance), -1) / 2
    log_a = jax.nn.log_sigmoid(state.activation_logit)
    return Gaussians(state.mean, 2 * state.variance, log_a - normalizer, state.mean)


def _m_step(constants, params, stats, state):
    """Return mean and variance ``[J, D]``, and the cost ``[J]`` before its scale."""
    m = moments(stats, state.mean)
    mean, variance = m.mean, m.variance + constants.variance_floor
    if constants.kept:
        change = mean - state.mean
        mean = mean - constants.kept * change
        variance = variance + jnp.square(constants.kept * change)
    _, beta_u = _betas(constants, params)
    D = variance.shape[1]
    return mean, variance, (D * beta_u + jnp.sum(jnp.log(variance), -1) / 2) * m.weight
