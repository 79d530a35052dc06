"""Routing in the words of attention: inverted dot-product attention, and self-attention."""

import jax
import jax.numpy as jnp

from capsjax.routing.base import Routing, by_agreement
from capsjax.routing.dynamic import check_iterations
from capsjax.squash import safe_norm, squash_exponential

EPSILON = 1e-5  # of a normalised variance


def standardize(x: jax.Array) -> jax.Array:
    r""":math:`(x - \bar x) / \sqrt{\sigma^2 + 10^{-5}}` over the last axis."""
    centered = x - jnp.mean(x, -1, keepdims=True)
    return centered * jax.lax.rsqrt(jnp.mean(centered * centered, -1, keepdims=True) + EPSILON)


def inverted(iterations: int = 3) -> Routing:
    r"""Inverted dot-product attention (Tsai, Srivastava, Goh & Salakhutdinov 2020).

    .. math::
       p_j = \mathrm{LN}(\textstyle\sum_i c_{ij} \hat u_{j|i}), \quad
       c_i = \mathrm{softmax}_j(\hat u_{j|i} \cdot p_j / \sqrt D)

    Couplings are even in the first pass, then come from the poses of the pass before; logits do
    not accumulate. Poses are layer-normalised instead of squashed, and a class score is a linear
    read-out of its pose: a logit, trained by cross-entropy. Layers that stack can also be
    iterated all together, see :func:`capsjax.models.concurrent.concurrent`.

    Parameters: ``scale``, ``offset`` ``[D]`` of the layer normalisation and ``readout`` ``[D]``,
    ``readout_offset``, shared by all output capsules. Cost: R passes, as dynamic routing.
    Pitfall: there is no activation; a hidden layer's read-out is not used.

    Args:
      iterations: passes; one is no routing at all.

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
        logit=True,
        loss="cross_entropy",
    )


def self_attention() -> Routing:
    r"""Self-attention routing of Efficient-CapsNet (Mazzia, Salvetti & Chiaberge 2021).

    .. math::
       c_i = \mathrm{softmax}_j(\hat u_{j|i} \cdot \textstyle\sum_k \hat u_{j|k} / \sqrt D), \quad
       s_j = \textstyle\sum_i (c_{ij} + \beta_{ij}) \hat u_{j|i}, \quad
       v_j = (1 - e^{-\|s_j\|}) s_j / \|s_j\|

    The paper's I x I attention matrices are never needed, because a sum over k of scalar products
    is a scalar product with a sum: it is dynamic routing with two iterations, the first without
    squash, and a learned term after the softmax.

    Parameters: ``beta`` ``[I, J]``, zero at first. Two passes. Pitfall: with beta the weights of
    the sum may be negative and sum to anything; the couplings reported are the softmax alone.
    """

    def init(params, first):
        return jnp.zeros_like(first.votes[0])

    def logits(params, children, S, t):
        return jnp.einsum("ijd,jd->ij", children.votes, S) / S.shape[1] ** 0.5

    def accumulate(params, children, coupling, S, t):
        if t == 0:
            return jnp.sum(children.votes, axis=0)
        return jnp.einsum("ij,ijd->jd", coupling + params["beta"], children.votes)

    def finalize(params, S):
        v = squash_exponential(S)
        return v, safe_norm(v)

    return Routing(
        "self_attention",
        2,
        init=init,
        logits=logits,
        accumulate=accumulate,
        update=lambda params, S, before, t: S,
        finalize=finalize,
        init_params=lambda key, sizes: {"beta": jnp.zeros((sizes.I, sizes.J))},
        child_params=("beta",),
    )
