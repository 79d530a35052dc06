"""Routing by agreement as a :class:`~capsjax.routing.base.Routing`, and soft k-means.

:func:`capsjax.routing.procedure.dynamic_routing` is the paper's text, step by step; :func:`dynamic`
is the same algorithm as networks run it.
"""

import dataclasses

import jax.numpy as jnp

from capsjax.routing.base import (
    Routing,
    RoutingTraits,
    by_agreement,
    check_choice,
    check_iterations,
)
from capsjax.routing.equations import agreement, direction, quotient, weighted_sum
from capsjax.routing.initialization import agreement_length, scale_for
from capsjax.routing.normalizers import NORMALIZERS
from capsjax.squash import safe_norm, squash_by_name

# Exponents of J, factors on the initial matrices. The slopes of these couplings are 1 and J^-1/2,
# where that of softmax is 1/J; with shorter votes they are not decided by the first agreement.
INIT_SCALES = {"sparsemax": -0.5, "entmax": -0.25}
OVER = ("outputs", "inputs")
LARGEST_LOGIT = 50.0  # sums of its exponential, times votes, are finite in float32


def dynamic(
    iterations: int = 3,
    *,
    normalizer: str = "softmax",
    prior: str = "zeros",
    bias: bool = False,
    squash: str = "paper",
    scale: float | None = None,
    over: str = "outputs",
    name: str = "dynamic",
) -> Routing:
    r"""Returns routing by agreement (Sabour, Frosst & Hinton 2017).

    It is :func:`~capsjax.routing.procedure.dynamic_routing` with the logits written as
    :math:`b_{ij} = b^0_{ij} + \hat u_{j|i} \cdot V_j`, where V is the sum of the earlier outputs v.

    Cost: R passes, R - 1 of which compute agreements. Pitfalls: the softmax is over output
    capsules; without a bias the output is odd, v(-u) = -v(u) (Peer et al. 2019); squash
    contracts, so the activations of stacked layers fade (see :mod:`capsjax.squash`). Safe for votes
    up to 1e15.

    Args:
      iterations: the number of times s_j is computed.
      normalizer: from logits to couplings, a name of :data:`capsjax.routing.NORMALIZERS`.
      prior: initial logits b^0. ``zeros``, or ``learned``: parameters ``prior`` ``[I, J]``, zero
        before training; the paper's log priors, which "can be learned discriminatively".
      bias: whether s_j has parameters ``bias`` ``[J, D]``, initially 0.1, as in the authors' code.
      squash: a name of :data:`capsjax.squash.SQUASHES`.
      scale: factor on the weighted sum in s_j. None: one, and in a layer the factor with which it
        starts as the paper's layer does, see :mod:`capsjax.routing.initialization`.
      over: the couplings of each input capsule sum to one over the ``outputs``, as in the paper.
        Those of each output capsule do over the ``inputs`` in public code that takes the softmax
        along the other axis; it is here for weights that were trained so. Logits are then relative
        to their mean over the inputs and limited to 50 on both sides, and couplings in the output
        are proportional to the shares.
      name: name of the variant.

    Raises:
      ValueError: iterations below one, an unknown name, or another normalizer than softmax over
        the inputs.
    """
    check_iterations(iterations)
    _check_names(normalizer, prior, over)
    squash_fn, factor = squash_by_name(squash), 1.0 if scale is None else scale

    def init_params(key, sizes):
        params = {"prior": jnp.zeros((sizes.I, sizes.J))} if prior == "learned" else {}
        return params | ({"bias": jnp.full((sizes.J, sizes.D), 0.1)} if bias else {})

    def init(params, first):
        zero = jnp.zeros_like(first.votes[0])
        return zero, zero

    def query(params, state, t):
        return None if t == 0 else state[0]

    def update(params, S, state, t):
        s = factor * S
        v = squash_fn(s + params["bias"].astype(S.dtype) if "bias" in params else s)
        return state[0] + v, v

    def for_sizes(sizes, votes):
        options = {"normalizer": normalizer, "squash": squash}
        among = {"competitors": sizes.I if over == "inputs" else sizes.J}

        def length(scale):
            return agreement_length(sizes, votes, scale, passes=iterations, **among, **options)

        found = scale_for(length, votes, passes=iterations, squash=squash)
        options |= {"prior": prior, "bias": bias, "over": over, "name": name}
        return dynamic(iterations, scale=found, **options)

    def finalize(params, state):
        return state[1], safe_norm(state[1])

    routing = by_agreement(
        name,
        iterations,
        query=query,
        init=init,
        update=update,
        finalize=finalize,
        init_params=init_params,
        normalizer=normalizer,
        input_params=("prior",) if prior == "learned" else (),
        for_sizes=for_sizes if scale is None else None,
        traits=RoutingTraits(init_scale=lambda sizes: sizes.J ** INIT_SCALES.get(normalizer, 0)),
    )
    return _over_inputs(routing) if over == "inputs" else routing


def _check_names(normalizer, prior, over):
    check_choice("normalizer", normalizer, NORMALIZERS)
    check_choice("prior", prior, ("zeros", "learned"))
    check_choice("over", over, OVER)
    if over == "inputs" and normalizer != "softmax":
        raise ValueError(f"over='inputs' is for the normalizer softmax, not {normalizer}")


def _over_inputs(routing: Routing) -> Routing:
    """Returns dynamic routing whose softmax is over the input capsules.

    Its statistics have to be sums over them, so they are the sums of exp(b) and of exp(b) times the
    votes, and the softmax is their quotient. The mean vote, whose logit is subtracted from all
    others, is known from the first pass on.
    """

    def init(params, first):
        return routing.init(params, first), jnp.zeros_like(first.votes[0])

    def logits(params, capsules, state, t):
        (V, _), mean = state
        b = agreement(capsules.votes - mean[None], V)
        return b + params["prior"] if "prior" in params else b

    def accumulate(params, capsules, coupling, state, t):
        count = jnp.asarray(capsules.votes.shape[0], capsules.votes.dtype)
        total = jnp.sum(coupling, axis=0), jnp.sum(capsules.votes, axis=0), count
        return weighted_sum(coupling, capsules.votes), *total

    def update(params, stats, state, t):
        S, total, votes, count = stats
        return routing.update(params, quotient(S, total[:, None]), state[0], t), votes / count

    return dataclasses.replace(
        routing,
        init=init,
        logits=logits,
        accumulate=accumulate,
        update=update,
        finalize=lambda params, state: routing.finalize(params, state[0]),
        normalizer=lambda b: jnp.exp(jnp.clip(b, -LARGEST_LOGIT, LARGEST_LOGIT)),
        query=None,
    )


def kmeans(iterations: int = 3, *, squash: str = "half", scale: float | None = None) -> Routing:
    r"""Returns soft k-means by direction: logits are scalar products with the unit vector of s_j.

    .. math:: b_{ij} = \hat u_{j|i} \cdot s_j / \|s_j\|, \quad s_j = \textstyle\sum_i c_{ij}
              \hat u_{j|i}, \quad v_j = \mathrm{squash}(s_j)

    Unlike in dynamic routing, logits do not accumulate, so more iterations do not bring the
    couplings closer to 0 and 1. No paper: public code names it k-means routing (leftthomas's
    CapsuleLayer, bojone's Capsule), with this squash. No parameters; R passes. Safe for votes up to
    1e15.

    Args:
      iterations: the number of passes, the first of which has even couplings.
      squash, scale: see :func:`dynamic`.

    Raises:
      ValueError: see :func:`dynamic`.
    """
    check_iterations(iterations)
    squash_fn, factor = squash_by_name(squash), 1.0 if scale is None else scale

    def query(params, s, t):
        return None if t == 0 else direction(s)

    def finalize(params, s):
        v = squash_fn(factor * s)
        return v, safe_norm(v)

    def for_sizes(sizes, votes):
        options = {"passes": iterations, "squash": squash}

        def length(scale):
            return agreement_length(sizes, votes, scale, query=lambda V, v: 1.0, **options)

        return kmeans(iterations, squash=squash, scale=scale_for(length, votes, **options))

    return by_agreement(
        "kmeans",
        iterations,
        query=query,
        init=lambda params, first: jnp.zeros_like(first.votes[0]),
        update=lambda params, S, s, t: S,
        finalize=finalize,
        for_sizes=for_sizes if scale is None else None,
    )
