"""Routing by agreement: Procedure 1 of "Dynamic Routing Between Capsules", and its relatives.

:func:`dynamic_routing` is the paper's text, step by step. :func:`dynamic` is the same algorithm
as a :class:`~capsjax.routing.base.Routing`. Every function is written for one example.
"""

import chex
import jax
import jax.numpy as jnp

from capsjax.routing.base import GRADIENTS, Routing, RoutingOutput, by_agreement, check_choice
from capsjax.routing.normalizers import NORMALIZERS, normalize
from capsjax.squash import safe_norm, squash, squash_by_name

# Exponents of J that start a layer where it can learn. The transformation matrices are made for
# softmax, whose couplings are 1/J at first and change by 1/J times the change of a logit. Where
# couplings are larger or change faster, agreement with a thousand input capsules feeds itself:
# after three iterations every output is as long as it can be, the squash is flat there, and
# nothing is learned.
SCALES = {"sigmoid": -1.0, "maxmin": -1.5}  # of s_j: couplings are 1/2, or up to 1
GAINS = {"sparsemax": -0.5, "entmax": -0.25}  # of the first matrices: slopes are 1, or J^-1/2


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
      normalizer: softmax, or another name of :data:`capsjax.routing.NORMALIZERS`.
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


def dynamic(
    iterations: int = 3,
    *,
    normalizer: str = "softmax",
    prior: str = "zeros",
    bias: bool = False,
    squash: str = "paper",
    scale: float | None = None,
    name: str = "dynamic",
) -> Routing:
    r"""Routing by agreement (Sabour, Frosst & Hinton 2017).

    :func:`dynamic_routing`, with the logits written as
    :math:`b_{ij} = b^0_{ij} + \hat u_{j|i} \cdot V_j`, V the sum of the earlier outputs v.

    Cost: R passes, R - 1 of which compute agreements. Pitfalls: the softmax is over parents;
    without a bias the output is odd, v(-u) = -v(u) (Peer et al. 2021); squash contracts, so that
    stacked layers fade (see :mod:`capsjax.squash`).

    Args:
      iterations: how often s_j is computed.
      normalizer: of logits to couplings, a name of :data:`capsjax.routing.NORMALIZERS`.
      prior: first logits b^0. ``zeros``, or ``learned``: parameters ``prior`` ``[I, J]``, zero at
        first; the paper's log priors, which "can be learned discriminatively".
      bias: parameters ``bias`` ``[J, D]`` of s_j, 0.1 at first, as in the authors' code.
      squash: a name of :data:`capsjax.squash.SQUASHES`.
      scale: factor on the weighted sum in s_j. None: one, and in a layer J^-1 for sigmoid and
        J^-1.5 for maxmin couplings, which are larger than those of softmax.
      name: of the variant.

    Raises:
      ValueError: iterations below one, or an unknown name.
    """
    check_iterations(iterations)
    check_choice("normalizer", normalizer, NORMALIZERS)
    check_choice("prior", prior, ("zeros", "learned"))
    shrink = squash_by_name(squash)

    def init_params(key, sizes):
        params = {"prior": jnp.zeros((sizes.I, sizes.J))} if prior == "learned" else {}
        return params | ({"bias": jnp.full((sizes.J, sizes.D), 0.1)} if bias else {})

    def init(params, first):
        zero = jnp.zeros_like(first.votes[0])
        return zero, zero

    def query(params, state, t):
        return None if t == 0 else state[0]

    def update(params, S, state, t):
        s = S if scale is None else scale * S
        v = shrink(s + params["bias"].astype(S.dtype) if "bias" in params else s)
        return state[0] + v, v

    def fit(sizes):
        return dynamic(
            iterations,
            normalizer=normalizer,
            prior=prior,
            bias=bias,
            squash=squash,
            scale=sizes.J ** SCALES[normalizer],
            name=name,
        )

    def finalize(params, state):
        return state[1], safe_norm(state[1])

    return by_agreement(
        name,
        iterations,
        query=query,
        init=init,
        update=update,
        finalize=finalize,
        init_params=init_params,
        normalizer=normalizer,
        child_params=("prior",) if prior == "learned" else (),
        coupling_sum=1.0 if normalizer in ("softmax", "sparsemax", "entmax") else None,
        fit=fit if scale is None and normalizer in SCALES else None,
        gain=lambda sizes: sizes.J ** GAINS.get(normalizer, 0),
    )


def kmeans(iterations: int = 3, *, squash: str = "paper") -> Routing:
    r"""Soft k-means by direction: logits are scalar products with the unit vector of s_j.

    .. math:: b_{ij} = \hat u_{j|i} \cdot s_j / \|s_j\|, \quad s_j = \textstyle\sum_i c_{ij}
              \hat u_{j|i}, \quad v_j = \mathrm{squash}(s_j)

    Unlike in dynamic routing logits do not accumulate, so iterating does not polarise the
    couplings. No paper: public code names it k-means routing. No parameters; R passes.

    Args:
      iterations: passes, the first with even couplings. squash: see :func:`dynamic`.

    Raises:
      ValueError: see :func:`dynamic`.
    """
    check_iterations(iterations)
    shrink = squash_by_name(squash)

    def query(params, s, t):
        if t == 0:
            return None
        n = safe_norm(s, keepdims=True)
        return s / jnp.where(n > 0, n, 1)

    def finalize(params, s):
        v = shrink(s)
        return v, safe_norm(v)

    return by_agreement(
        "kmeans",
        iterations,
        query=query,
        init=lambda params, first: jnp.zeros_like(first.votes[0]),
        update=lambda params, S, s, t: S,
        finalize=finalize,
    )


def check_iterations(iterations: int) -> None:
    """Raise ValueError below one."""
    if iterations < 1:
        raise ValueError(f"iterations must be 1 or more, not {iterations}")
