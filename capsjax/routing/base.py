r"""The record of pure functions that defines a routing algorithm.

An algorithm repeats *passes* over the input capsules. A pass computes the coupling
coefficients of every input capsule from what is known about the output capsules (the
*state*), and sums *statistics* over the input capsules, from which the next state follows:

.. math::
   c_i = \mathrm{norm}(\mathrm{logits}(x_i, \mathrm{state})), \quad
   \mathrm{stats} = \textstyle\sum_i \mathrm{accumulate}(x_i, c_i, \mathrm{state}), \quad
   \mathrm{state} \leftarrow \mathrm{update}(\mathrm{stats}, \mathrm{state})

Because the statistics are a plain sum over input capsules, the same record runs with all votes
in memory (:mod:`capsjax.routing.passes`), on a few capsules at a time
(:mod:`capsjax.routing.engine`), or divided among devices. All functions are written for one
example.

"Safe for votes up to X" in the description of an algorithm means that values and gradients are
finite in float32 where no component of a pose, a transformation matrix or a vote is larger than X.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from capsjax.routing.equations import agreement, weighted_sum
from capsjax.routing.normalizers import normalize

Params = dict[str, jax.Array]
State = Any
GRADIENTS = ("full", "stop", "last")


class Sizes(NamedTuple):
    """The sizes of a routed layer."""

    I: int  # input capsules
    J: int  # output capsules
    D: int  # pose size of an output capsule
    K: int  # pose size of an input capsule


class InitialVotes(NamedTuple):
    """The votes of a layer before training, see :mod:`capsjax.routing.initialization`."""

    deviation: float  # root mean square of a component
    total: float  # root mean square length of their sum over the input capsules
    tolerance: float = 1.0  # largest error of the length of the sum that is left as it is


class InputCapsules(NamedTuple):
    """All or some of the input capsules of one example."""

    votes: jax.Array  # [I, J, D] prediction vectors
    pose: jax.Array  # [I, K]
    activation: jax.Array  # [I], probability that the entity is present


class Trace(NamedTuple):
    """What every pass computed, for diagnostics."""

    logits: jax.Array  # [R, I, J]
    coupling: jax.Array  # [R, I, J]
    pose: jax.Array  # [R, J, D] what the output would have been after each pass
    activation: jax.Array  # [R, J]


class RoutingOutput(NamedTuple):
    """The result of a routing algorithm for one example."""

    pose: jax.Array  # [J, D] poses of the output capsules
    activation: jax.Array  # [J] probability that the entity is present, or a logit of it
    # [I, J] coupling coefficients of the last pass; None from the implementations that never
    # hold all of them.
    coupling: jax.Array | None = None
    aux: Trace | None = None  # only on request


@dataclasses.dataclass(frozen=True)
class RoutingTraits:
    """What networks and training must know about an algorithm, in addition to its equations."""

    scores_are_logits: bool = False  # activations are logits, not probabilities
    loss: str = "margin"  # loss of the algorithm's paper, a key of capsjax.objectives.LOSSES
    # What the paper does with the poses of primary capsules, a key of capsjax.squash.POSE_MAPS,
    # and what their activations are, one of capsjax.primary_capsules.ACTIVATIONS.
    primary_squash: str = "paper"
    primary_activation: str = "length"
    # Poses are means of votes. A mean of many votes is short, and shorter in every further layer,
    # so networks normalize poses between layers.
    poses_are_means: bool = False
    # In a convolutional layer an input capsule competes for the output capsules at all positions
    # that see it, as one mixture model demands; otherwise separately at each position.
    compete_across_positions: bool = False
    # Such an algorithm starts with couplings 1/J at each position, not 1/J over all positions.
    starts_at_each_position: bool = False
    # sizes -> factor on the initial transformation matrices, for algorithms that need votes of
    # another length than those that suit dynamic routing
    init_scale: Callable[[Sizes], float] = lambda sizes: 1.0

    @property
    def squash_primary(self) -> bool:
        """Whether the poses of primary capsules are squashed as in dynamic routing."""
        return self.primary_squash == "paper"


def _no_params(key, sizes):
    return {}


@dataclasses.dataclass(frozen=True)
class Routing:
    """A routing algorithm. A new algorithm is a function that returns such a record.

    ``params`` are the learned numbers. Those named in ``input_params`` have a first axis I, and
    the functions receive the part that belongs to the input capsules that they are given. The
    number t of the pass is a Python integer.
    """

    name: str
    passes: int
    # (params, first) -> state before the first pass. ``first`` is one input capsule, for shapes,
    # types and scale; no gradient flows through it.
    init: Callable[[Params, InputCapsules], State]
    # (params, capsules, state, t) -> [I, J]
    logits: Callable[[Params, InputCapsules, State, int], jax.Array]
    # (params, capsules, coupling [I, J], state, t) -> statistics, summed over the input capsules
    accumulate: Callable[[Params, InputCapsules, jax.Array, State, int], Any]
    # (params, statistics, state, t) -> state
    update: Callable[[Params, Any, State, int], State]
    # (params, state) -> (pose [J, D], activation [J])
    finalize: Callable[[Params, State], tuple[jax.Array, jax.Array]]
    # (key, sizes) -> params
    init_params: Callable[[Any, Sizes], Params] = _no_params
    # from logits to coupling coefficients: a key of NORMALIZERS, or a function [I, J] -> [I, J]
    normalizer: str | Callable = "softmax"
    first_normalizer: str | Callable | None = None  # of the first pass; None: the same
    input_params: tuple[str, ...] = ()  # params with a first axis I
    constants: tuple[str, ...] = ()  # params that are not trained
    # (sizes, votes) -> the same algorithm with the constants that suit a layer of these sizes whose
    # matrices were made for these votes; None where the caller chose the matrices
    for_sizes: Callable[[Sizes, InitialVotes | None], "Routing"] | None = None
    # (params, state, t) -> V [J, D] or None for zero. Where it is given, the logits are
    # prior_ij + votes_ij . V_j and the statistics sum_i c_ij votes_ij, which is what the kernels
    # compute; see :func:`by_agreement`.
    query: Callable[[Params, State, int], jax.Array | None] | None = None
    # (params, state) -> capsjax.routing.mixture.Gaussians. Where it is given, the logits are log
    # densities and the statistics moments; see :func:`capsjax.routing.mixture.by_mixture`. Whoever
    # replaces one of those two functions replaces this by None.
    gaussians: Callable[[Params, State], Any] | None = None
    traits: RoutingTraits = RoutingTraits()

    def couple(self, logits: jax.Array, t: int) -> jax.Array:
        """Computes the coupling coefficients of the logits ``[I, J]`` of pass t."""
        first = t == 0 and self.first_normalizer is not None
        normalizer = self.first_normalizer if first else self.normalizer
        return normalizer(logits) if callable(normalizer) else normalize(logits, normalizer)


def by_agreement(name: str, passes: int, *, query: Callable, **fields) -> Routing:
    r"""Returns a routing whose logits are scalar products and whose statistics are weighted sums.

    .. math:: b_{ij} = b^0_{ij} + \hat u_{j|i} \cdot V_j, \quad
              S_j = \textstyle\sum_i c_{ij} \hat u_{j|i}

    V follows from the state, and the prior b^0 is the parameter ``prior`` ``[I, J]`` if there is
    one. With softmax or leaky couplings it runs on the pass kernels, which hold no votes.

    Args:
      name, passes: of the algorithm.
      query: ``(params, state, t) -> V [J, D]``, or None for zero.
      **fields: the other fields of :class:`Routing`.
    """

    def logits(params, capsules, state, t):
        V, prior = query(params, state, t), params.get("prior")
        if V is None:
            b = jnp.zeros(capsules.votes.shape[:2], capsules.votes.dtype)
        else:
            b = agreement(capsules.votes, V)
        return b if prior is None else b + prior

    def accumulate(params, capsules, coupling, state, t):
        return weighted_sum(coupling, capsules.votes)

    return Routing(name, passes, query=query, logits=logits, accumulate=accumulate, **fields)


def check_choice(argument: str, value: str, legal: Sequence[str]) -> None:
    """Raises ValueError unless ``value`` is one of the legal ones."""
    if value not in legal:
        raise ValueError(f"{argument} must be one of {', '.join(legal)}, not {value!r}")


def check_iterations(iterations: int) -> None:
    """Raises ValueError unless there is at least one iteration."""
    if iterations < 1:
        raise ValueError(f"iterations must be 1 or more, not {iterations}")
