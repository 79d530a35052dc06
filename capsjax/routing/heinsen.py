"""Routing by bang per bit (Heinsen 2022): output vectors predict the input vectors."""

import jax
import jax.numpy as jnp

from capsjax.routing.base import Routing, RoutingTraits, check_iterations
from capsjax.routing.equations import standardize, weighted_sum


def heinsen(iterations: int = 2) -> Routing:
    r"""Returns routing by bang per bit.

    Heinsen, "An Algorithm for Routing Vectors in Sequences" (2022, arXiv 2211.11754). Starting
    from couplings :math:`R_{ij} = 1/J`, with input activations
    :math:`f_i = \mathrm{sigmoid}(w_i \cdot u_i + b_i)`, repeat

    .. math::
       \phi_{ij} = \beta^{use}_{ij} f_i R_{ij} - \beta^{ign}_{ij} f_i (1 - R_{ij}), \quad
       x_j = \textstyle\sum_i \phi_{ij} (\hat u_{j|i} + o_j)

    and, between two of them, let every output predict the inputs, and measure how well it does,

    .. math::
       g_j = (\mathrm{LN}(x_j) G) \odot g^1_j + g^0_j, \quad
       R_i = \mathrm{softmax}_j \log \mathrm{sigmoid}(s^1_{ij} \, u_i \cdot g_j + s^0_{ij})

    The pose is LN(x_j), the score a linear read-out of it, a logit. Primary capsules are not
    squashed. Not as published: the authors' code scales inputs by I^-1/2 for the gate and the votes
    and factorizes the transformation matrices; here the factor of the gate is in its initial
    weights, and the votes are those of the layer, to which their offset o is added.

    Parameters: per input capsule ``score_weights`` ``[I, K]``, ``score_offset`` ``[I]``,
    ``similarity_scale``, ``similarity_offset``, ``use``, ``ignore`` ``[I, J]``; per output capsule
    ``vote_offset`` ``[J, D]``, initially zero, ``predict`` ``[D, K]``, ``predict_scale``,
    ``predict_offset`` ``[J, K]``, ``readout`` ``[D]``, ``readout_offset``. R passes; couplings need
    no votes. Pitfall: with J = 1 nothing is ignored. Safe for votes up to 1e15.

    Args:
      iterations: the number of passes.

    Raises:
      ValueError: iterations below one.
    """
    check_iterations(iterations)

    def logits(params, capsules, x, t):
        if t == 0:
            return jnp.zeros(capsules.votes.shape[:2], capsules.votes.dtype)
        guess = (standardize(x) @ params["predict"]) * params["predict_scale"]
        likeness = capsules.pose @ (guess + params["predict_offset"]).T
        return jax.nn.log_sigmoid(
            likeness * params["similarity_scale"] + params["similarity_offset"]
        )

    def accumulate(params, capsules, coupling, x, t):
        score = jnp.sum(capsules.pose * params["score_weights"], -1) + params["score_offset"]
        used = jax.nn.sigmoid(score)[:, None] * coupling
        ignored = jax.nn.sigmoid(score)[:, None] * (1 - coupling)
        phi = params["use"] * used - params["ignore"] * ignored
        offset = jnp.sum(phi, 0)[:, None] * params["vote_offset"]
        return weighted_sum(phi, capsules.votes) + offset

    def finalize(params, x):
        pose = standardize(x)
        return pose, pose @ params["readout"] + params["readout_offset"]

    return Routing(
        "heinsen",
        iterations,
        init=lambda params, first: jnp.zeros_like(first.votes[0]),
        logits=logits,
        accumulate=accumulate,
        update=lambda params, total, x, t: total,
        finalize=finalize,
        init_params=_init_params,
        input_params=(
            "score_weights",
            "score_offset",
            "similarity_scale",
            "similarity_offset",
            "use",
            "ignore",
        ),
        traits=RoutingTraits(scores_are_logits=True, loss="cross_entropy", primary_squash="none"),
    )


def _init_params(key, sizes):
    I, J, D, K = sizes
    keys = iter(jax.random.split(key, 8))

    def normal(*shape, std=1.0):
        return std * jax.random.normal(next(keys), shape)

    return {
        "score_weights": normal(I, K, std=2 / (K * I) ** 0.5),
        "score_offset": jnp.zeros(I),
        "similarity_scale": normal(I, J, std=K**-0.5),
        "similarity_offset": jnp.zeros((I, J)),
        "use": normal(I, J),
        "ignore": normal(I, J),
        "vote_offset": jnp.zeros((J, D)),
        "predict": normal(D, K, std=D**-0.5),
        "predict_scale": normal(J, K),
        "predict_offset": jnp.zeros((J, K)),
        "readout": normal(D, std=D**-0.5),
        "readout_offset": jnp.zeros(()),
    }
