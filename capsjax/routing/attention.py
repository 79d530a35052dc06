"""Routing algorithms formulated as attention: inverted dot-product attention, self-attention."""

import jax
import jax.numpy as jnp

from capsjax.routing.base import Routing, RoutingTraits, by_agreement, check_iterations
from capsjax.routing.equations import (
    agreement,
    standardize,
    weighted_sum,
    within_resolution,
)
from capsjax.routing.initialization import agreement_length, scale_for
from capsjax.squash import safe_norm, squash_exponential


def inverted(iterations: int = 3) -> Routing:
    r"""Returns inverted dot-product attention (Tsai, Srivastava, Goh & Salakhutdinov 2020).

    .. math::
       p_j = \mathrm{LN}(\textstyle\sum_i c_{ij} \hat u_{j|i}), \quad
       c_i = \mathrm{softmax}_j(\hat u_{j|i} \cdot p_j / \sqrt D)

    Couplings are even in the first pass and then follow from the poses of the pass before; logits
    do not accumulate. Poses are layer-normalized instead of squashed, and a class score is a
    linear read-out of its pose: a logit, trained by cross-entropy. Stacked layers can also be
    iterated all together, see :func:`capsjax.models.concurrent.route_concurrently`. Primary
    capsules are layer-normalized, too; the authors' scale and offset there are absorbed by the
    transformation matrices, except the offset of the votes, which is missing.

    Parameters: ``scale``, ``offset`` ``[D]`` of the layer normalization, and ``readout`` ``[D]``
    and ``readout_offset``, shared by all output capsules. Cost: R passes, as dynamic routing.
    Pitfall: there is no activation; a hidden layer's read-out is not used. Safe for votes up to
    1e15.

    Args:
      iterations: the number of passes; with one there is no routing.

    Raises:
      ValueError: iterations below one.
    """
    check_iterations(iterations)

    def init_params(key, sizes):
        return {
            "scale": jnp.ones(sizes.D),
            "offset": jnp.zeros(sizes.D),
            "readout": jax.random.normal(key, (sizes.D,)) / jnp.sqrt(float(sizes.D)),
            "readout_offset": jnp.zeros(()),
        }

    def query(params, p, t):
        return None if t == 0 else p / p.shape[1] ** 0.5

    def update(params, S, p, t):
        return standardize(S) * params["scale"][None] + params["offset"][None]

    def finalize(params, p):
        return p, p @ params["readout"] + params["readout_offset"]

    return by_agreement(
        "inverted",
        iterations,
        query=query,
        init=lambda params, first: jnp.zeros_like(first.votes[0]),
        update=update,
        finalize=finalize,
        init_params=init_params,
        traits=RoutingTraits(
            scores_are_logits=True, loss="cross_entropy", primary_squash="layer_norm"
        ),
    )


def self_attention(*, scale: float | None = None) -> Routing:
    r"""Returns the self-attention routing of Efficient-CapsNet (Mazzia, Salvetti & Chiaberge 2021).

    .. math::
       c_i = \mathrm{softmax}_j(\hat u_{j|i} \cdot \textstyle\sum_k \hat u_{j|k} / \sqrt D), \quad
       s_j = \textstyle\sum_i (c_{ij} + \beta_{ij}) \hat u_{j|i}, \quad
       v_j = (1 - e^{-\|s_j\|}) s_j / \|s_j\|

    The paper's I x I attention matrices are never needed, because a sum over k of scalar products
    is a scalar product with a sum: it is dynamic routing with two iterations, the first of them
    without squash, and a learned term after the softmax.

    Parameters: ``beta`` ``[I, J]``, initially zero. Two passes. Pitfall: with beta the weights of
    the sum can be negative and have any sum; the couplings in the output are the softmax alone.
    Safe for votes up to 1e15; logits above 8e6 (in float32) are scaled down to it, because a
    softmax of larger ones is not safe (:func:`capsjax.routing.equations.within_resolution`).

    Args:
      scale: factor on s_j, see :func:`~capsjax.routing.dynamic.dynamic`.
    """

    factor = 1.0 if scale is None else scale

    def init(params, first):
        return jnp.zeros_like(first.votes[0])

    def logits(params, capsules, S, t):
        return within_resolution(agreement(capsules.votes, S) / S.shape[1] ** 0.5)

    def accumulate(params, capsules, coupling, S, t):
        if t == 0:
            return jnp.sum(capsules.votes, axis=0)
        return weighted_sum(coupling + params["beta"], capsules.votes)

    def finalize(params, S):
        v = squash_exponential(factor * S)
        return v, safe_norm(v)

    def for_sizes(sizes, votes):
        options = {"passes": 2, "squash": "exponential"}

        def length(scale):
            V = votes.total / sizes.D**0.5
            return agreement_length(sizes, votes, scale, query=lambda *_: V, **options)

        return self_attention(scale=scale_for(length, votes, **options))

    return Routing(
        "self_attention",
        2,
        init=init,
        logits=logits,
        accumulate=accumulate,
        update=lambda params, S, before, t: S,
        finalize=finalize,
        init_params=lambda key, sizes: {"beta": jnp.zeros((sizes.I, sizes.J))},
        input_params=("beta",),
        for_sizes=for_sizes if scale is None else None,
    )
