"""Self-routing (Hahn, Pyeon & Kim 2019): the couplings of an input capsule depend on it alone."""

import jax
import jax.numpy as jnp

from capsjax.routing.base import Routing, RoutingTraits
from capsjax.routing.equations import weighted_sum


def self_routing() -> Routing:
    r"""Returns self-routing (Hahn, Pyeon & Kim, "Self-Routing Capsule Networks", NeurIPS 2019).

    .. math::
       c_i = \mathrm{softmax}_j(w_{ij} \cdot u_i + b_{ij}), \quad
       a_j = \frac{\sum_i c_{ij} a_i}{\sum_i a_i}, \quad
       v_j = \frac{\sum_i c_{ij} a_i \hat u_{j|i}}{\sum_i c_{ij} a_i}

    There is no agreement and no iteration: it is a mixture of experts whose gate sees one input
    capsule. Activations of the output capsules sum to one, so cross-entropy on them is the
    paper's negative log-likelihood.

    Parameters: ``weights`` ``[I, J, K]``, normal with standard deviation K^-1/2, and ``offset``
    ``[I, J]``, zero. One pass; couplings need no votes. Safe for votes up to 1e15. Not as
    published: in the authors' code weights start at zero, which learns more slowly; poses are
    normalized over the batch between layers, here over the example (``pose_norm`` of
    :class:`capsjax.CapsNetConfig`); poses and the logits of the activations of primary capsules
    are normalized over the batch, here not. Pitfalls: without the normalization between layers
    poses shrink from layer to layer; the votes are averaged without regard to each other, which
    takes longer to train than routing by agreement.
    """

    def init_params(key, sizes):
        return {
            "weights": jax.random.normal(key, (sizes.I, sizes.J, sizes.K)) / sizes.K**0.5,
            "offset": jnp.zeros((sizes.I, sizes.J)),
        }

    def init(params, first):
        zero = jnp.zeros_like(first.votes[0])
        return zero, zero[:, 0]

    def logits(params, capsules, state, t):
        return jnp.einsum("ijk,ik->ij", params["weights"], capsules.pose) + params["offset"]

    def accumulate(params, capsules, coupling, state, t):
        share = coupling * capsules.activation[:, None]
        pose = weighted_sum(share, capsules.votes)
        return jnp.sum(capsules.activation), jnp.sum(share, axis=0), pose

    def update(params, stats, state, t):
        total, share, pose = stats
        # Smaller sums count as none: the gradient of a quotient divides by the square.
        least = jnp.finfo(share.dtype).tiny ** 0.5
        safe = jnp.where(share > least, share, 1)
        return pose / safe[:, None], share / jnp.where(total > least, total, 1)

    return Routing(
        "self",
        1,
        init=init,
        logits=logits,
        accumulate=accumulate,
        update=update,
        finalize=lambda params, state: state,
        init_params=init_params,
        input_params=("weights", "offset"),
        traits=RoutingTraits(
            loss="cross_entropy",
            primary_squash="none",
            primary_activation="sigmoid",
            poses_are_means=True,
            # Votes as long as poses, from weights of standard deviation 0.1.
            init_scale=lambda sizes: 10 / sizes.K**0.5,
        ),
    )
