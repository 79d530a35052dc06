"""Variational Bayes routing (Ribeiro, Leontidis & Kollias 2020): EM with priors."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma

from capsjax.routing.base import Routing, RoutingTraits, check_iterations
from capsjax.routing.mixture import Gaussians, by_mixture
from capsjax.routing.moments import moments

DEVIATIONS = 3  # of the energies before training, which their normalization adds to theirs


class State(NamedTuple):
    """Parameters of the posterior distributions."""

    shift: jax.Array  # [J, D] mean of the votes
    m: jax.Array  # [J, D] posterior mean
    inverse_scale: jax.Array  # [J, D] diagonal of the inverse scale matrix
    kappa: jax.Array  # [J]
    nu: jax.Array  # [J]
    log_pi: jax.Array  # [J] expected logarithm of the mixing coefficient
    log_det: jax.Array  # [J] expected logarithm of the determinant of the precision


def vb(iterations: int = 3, *, standardized: bool = True) -> Routing:
    r"""Returns routing by variational Bayes.

    Ribeiro, Leontidis & Kollias, "Capsule Routing via Variational Bayes" (AAAI 2020). A
    Bayesian mixture of Gaussians with diagonal precision, Dirichlet prior
    :math:`\alpha_0 = 1` and Gaussian-Wishart prior :math:`m_0 = 0, \kappa_0 = 1, \Psi_0 = 1,
    \nu_0 = D + 1`. Starting from :math:`r_{ij} = 1/J`, in a convolutional layer at each position,
    with :math:`R_{ij} = r_{ij} a_i`, their
    sum R_j and the weighted mean mu_j of the votes,

    .. math::
       \alpha_j = \alpha_0 + R_j, \; \kappa_j = \kappa_0 + R_j, \; \nu_j = \nu_0 + R_j, \;
       m_j = R_j \mu_j / \kappa_j, \;
       \Psi_j^{-1} = \Psi_0 + \textstyle\sum_i R_{ij} (\hat u_{j|i} - \mu_j)^2
                     + (\kappa_0 R_j / \kappa_j) \mu_j^2

    .. math::
       r_i = \mathrm{softmax}_j \big( E \log \pi_j + \tfrac12 E \log |\Lambda_j|
       - \tfrac12 (D / \kappa_j + \nu_j \textstyle\sum_d (\hat u_{jd|i} - m_{jd})^2 \Psi_{jd}) \big)

    The priors bound the variances that collapse in EM. The activation is

    .. math::
       a_j = \mathrm{sigmoid}\big(\beta_{a,j}
       - (\mathrm{norm}_j(e^{E \log \pi_j} H_j) + \beta_{u,j})\big), \quad
       H_j = \tfrac D2 \log 2 \pi e - \tfrac12 E \log |\Lambda_j|

    with

    .. math::
       \mathrm{norm}_j(e) = \frac{e_j - \bar e}
       {\sqrt{\frac1J \sum_k (e_k - \bar e)^2 + 9 D / (2 \bar\kappa J^2)}}

    and bars for means over the J output capsules. The last term is nine times the variance before
    training: :math:`\pi_j` is then about 1/J, and the logarithm of a variance estimated from
    :math:`\kappa` votes has variance 2 / kappa. Without it two output capsules would have energies
    of -1 and 1 whatever the votes are, and no gradient.

    Not as published: the authors' code has no norm but normalizes the argument of the sigmoid over
    the batch, betas included, and m as well, which makes outputs depend on the other examples.
    Without any normalization the output capsules of a thousand input capsules are almost equal and
    learn far more slowly. The published loss is the cross-entropy of the softmax of the
    activations; here activations are divided by their sum
    (:func:`capsjax.losses.cross_entropy_of_lengths`).

    With ``standardized=False`` the activation is the argument of the sigmoid without norm, a logit,
    for networks that normalize it over the batch: ``pose_norm="batch"`` of
    :class:`capsjax.CapsNetConfig`, as in the preset ``vb``, whose loss is the published one.

    Parameters: ``beta_u`` and ``beta_a``, initially zero, ``[J]``. R passes. Pitfall: with one
    output capsule the activation carries no information. Safe for votes up to 1e15.

    Args:
      iterations: the number of passes.
      standardized: see above.

    Raises:
      ValueError: iterations below one.
    """
    check_iterations(iterations)

    def init_params(key, sizes):
        return {"beta_u": jnp.zeros(sizes.J), "beta_a": jnp.zeros(sizes.J)}

    def init(params, first):
        pose = first.votes[0]
        number = jnp.ones_like(pose[:, 0])
        return State(pose, pose, jnp.ones_like(pose), number, number, 0 * number, 0 * number)

    return by_mixture(
        "vb",
        iterations,
        gaussians=_gaussians,
        init=init,
        update=_update,
        finalize=functools.partial(_finalize, standardized=standardized),
        init_params=init_params,
        traits=RoutingTraits(
            scores_are_logits=not standardized,
            loss="cross_entropy",
            primary_squash="none",
            primary_activation="sigmoid",
            poses_are_means=True,
            compete_across_positions=True,
            starts_at_each_position=True,
            # Votes as long as poses, from weights of standard deviation 0.1.
            init_scale=lambda sizes: 10 / sizes.K**0.5,
        ),
    )


def _gaussians(params, state):
    D = state.m.shape[1]
    log_weight = state.log_pi + (state.log_det - D / state.kappa) / 2
    twice_variance = 2 * state.inverse_scale / state.nu[:, None]
    return Gaussians(state.m, twice_variance, log_weight, state.shift)


def _update(params, stats, state, t):
    m = moments(stats, state.shift)
    D = m.mean.shape[1]
    R = m.weight
    alpha, kappa, nu = 1 + R, 1 + R, D + 1 + R
    scatter = R[:, None] * m.variance
    inverse_scale = 1 + scatter + (R / kappa)[:, None] * jnp.square(m.mean)
    log_pi = digamma(alpha) - digamma(jnp.sum(alpha))
    d = jnp.arange(D).astype(R.dtype)
    log_det = jnp.sum(digamma((nu[:, None] - d[None]) / 2) - jnp.log(inverse_scale), -1)
    return State(
        shift=m.mean,
        m=(R / kappa)[:, None] * m.mean,
        inverse_scale=inverse_scale,
        kappa=kappa,
        nu=nu,
        log_pi=log_pi,
        log_det=log_det + D * math.log(2),
    )


def _finalize(params, state, *, standardized):
    D = state.m.shape[1]
    entropy = D / 2 * math.log(2 * math.pi * math.e) - state.log_det / 2
    energy = jnp.exp(state.log_pi) * entropy
    if standardized:
        energy = _normalized(energy, jnp.mean(state.kappa), D)
    logit = params["beta_a"] - (energy + params["beta_u"])
    return state.m, jax.nn.sigmoid(logit) if standardized else logit


def _normalized(energy, kappa, D):
    centered = energy - jnp.mean(energy)
    initial = D / (2 * kappa * energy.shape[0] ** 2)
    return centered * jax.lax.rsqrt(jnp.mean(jnp.square(centered)) + DEVIATIONS**2 * initial)
