r"""What a routing algorithm is: a record of pure functions, and the loop that runs it.

An algorithm repeats *passes* over the input capsules. A pass computes the coupling
coefficients of every input capsule from what is known about the output capsules (the
*state*), and sums *statistics* over the input capsules, from which the next state follows:

.. math::
   c_i = \mathrm{norm}(\mathrm{logits}(x_i, \mathrm{state})), \quad
   \mathrm{stats} = \textstyle\sum_i \mathrm{accumulate}(x_i, c_i, \mathrm{state}), \quad
   \mathrm{state} \leftarrow \mathrm{update}(\mathrm{stats}, \mathrm{state})

Because the statistics are a plain sum over input capsules, the same record runs with all votes
in memory, on a few capsules at a time (:mod:`capsjax.routing.engine`), or divided among
devices. All functions are written for one example.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from capsjax.routing.normalizers import normalize

Params = dict[str, jax.Array]
State = Any
GRADIENTS = ("full", "stop", "last")


class Sizes(NamedTuple):
    """Of a routed layer."""

    I: int  # input capsules
    J: int  # output capsules
    D: int  # pose size of an output capsule
    K: int  # pose size of an input capsule


class InputCapsules(NamedTuple):
    """Input capsules of one example, all or some of them."""

    votes: jax.Array  # [I, J, D] prediction vectors
    pose: jax.Array  # [I, K]
    activation: jax.Array  # [I], probability that the entity is present


class Trace(NamedTuple):
    """What happened in every pass, for diagnostics."""

    logits: jax.Array  # [R, I, J]
    coupling: jax.Array  # [R, I, J]
    pose: jax.Array  # [R, J, D] what the output would have been after each pass
    activation: jax.Array  # [R, J]


class RoutingOutput(NamedTuple):
    """What a routing algorithm gives back for one example."""

    pose: jax.Array  # [J, D] poses of the output capsules
    activation: jax.Array  # [J] probability that the entity is present, or a logit of it
    # [I, J] coupling coefficients of the last pass; None from the implementations that never
    # hold all of them.
    coupling: jax.Array | None = None
    aux: Trace | None = None  # only where asked for


def _no_params(key, sizes):
    return {}


@dataclasses.dataclass(frozen=True)
class Routing:
    """A routing algorithm. A new one is a function that returns such a record.

    ``params`` are the learned numbers; those named in ``child_params`` have a first axis I,
    of which the functions see the part that belongs to the children they are given. The number
    t of the pass is a Python integer.
    """

    name: str
    passes: int
    # (params, first: Children) -> state before the first pass. ``first`` is one input capsule,
    # for shapes, types and scale; no gradient flows through it.
    init: Callable[[Params, InputCapsules], State]
    # (params, children, state, t) -> [I, J]
    logits: Callable[[Params, InputCapsules, State, int], jax.Array]
    # (params, children, coupling [I, J], state, t) -> statistics, summed over the children
    accumulate: Callable[[Params, InputCapsules, jax.Array, State, int], Any]
    # (params, statistics, state, t) -> state
    update: Callable[[Params, Any, State, int], State]
    # (params, state) -> (pose [J, D], activation [J])
    finalize: Callable[[Params, State], tuple[jax.Array, jax.Array]]
    # (key, sizes) -> params
    init_params: Callable[[Any, Sizes], Params] = _no_params
    # of logits to coupling coefficients: a name of NORMALIZERS, or a function [I, J] -> [I, J]
    normalizer: str | Callable = "softmax"
    child_params: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()  # params that training leaves alone
    # What the coupling coefficients of an input capsule sum to; None for no particular number.
    coupling_sum: float | None = 1.0
    logit: bool = False  # the activation is a logit, not a probability
    loss: str = "margin"  # that its paper trains it with, a name of capsjax.losses.LOSSES
    squashes: bool = True  # its paper squashes the poses that it is given
    # Its poses are means of votes. A mean of many is short, and shorter in every further layer, so
    # networks normalise poses between layers.
    means: bool = False
    # In a convolutional layer an input capsule competes for the parents at all positions that
    # see it, as one mixture model demands; otherwise for those of each position apart.
    field: bool = False
    # sizes -> factor on the initial transformation matrices, for algorithms that need votes of
    # another length than those that suit dynamic routing
    gain: Callable[[Sizes], float] = lambda sizes: 1.0
    # sizes -> the same algorithm with the constants that suit a layer of such sizes
    fit: Callable[[Sizes], "Routing"] | None = None
    # (params, state, t) -> V [J, D] or None for zero. Where it is given, the logits are
    # prior_ij + votes_ij . V_j and the statistics sum_i c_ij votes_ij, as the kernels have it;
    # see :func:`by_agreement`.
    query: Callable[[Params, State, int], jax.Array | None] | None = None

    def couple(self, logits: jax.Array) -> jax.Array:
        """Coupling coefficients of logits ``[I, J]``."""
        if callable(self.normalizer):
            return self.normalizer(logits)
        return normalize(logits, self.normalizer)


def by_agreement(name: str, passes: int, *, query: Callable, **fields) -> Routing:
    r"""A routing whose logits are scalar products and whose statistics weighted sums of votes.

    .. math:: b_{ij} = b^0_{ij} + \hat u_{j|i} \cdot V_j, \quad
              S_j = \textstyle\sum_i c_{ij} \hat u_{j|i}

    with V from the state, and the prior b^0 the parameter ``prior`` ``[I, J]`` if there is one.
    With softmax or leaky couplings it runs on the sweeps and kernels that hold no votes.

    Args:
      name, passes: of the algorithm.
      query: ``(params, state, t) -> V [J, D]``, or None for zero.
      **fields: the other fields of :class:`Routing`.
    """

    def logits(params, children, state, t):
        V, prior = query(params, state, t), params.get("prior")
        if V is None:
            b = jnp.zeros(children.votes.shape[:2], children.votes.dtype)
        else:
            b = jnp.einsum("ijd,jd->ij", children.votes, V)
        return b if prior is None else b + prior

    def accumulate(params, children, coupling, state, t):
        return jnp.einsum("ij,ijd->jd", coupling, children.votes)

    return Routing(name, passes, query=query, logits=logits, accumulate=accumulate, **fields)


def run_routing(
    routing: Routing,
    params: Params,
    children: InputCapsules,
    *,
    gradient: str = "full",
    trace: bool = False,
) -> RoutingOutput:
    """Route one example with all its votes in memory: the meaning of a :class:`Routing`.

    Args:
      routing: the algorithm. params: its parameters, see ``routing.init_params``.
      children: of one example.
      gradient: what is differentiated. ``full``: everything. ``stop``: the last pass, its
        coupling coefficients being constants. ``last``: the last pass, the state before it
        being a constant. The three give the same value.
      trace: also return a :class:`Trace`.

    Returns:
      :class:`RoutingOutput`.

    Raises:
      ValueError: unknown gradient.
    """
    check_choice("gradient", gradient, GRADIENTS)
    params = hold_constants(routing, params)
    state = initial_routing_state(routing, params, children)
    seen = []
    for t in range(routing.passes):
        if gradient != "full" and t + 1 == routing.passes:
            state = jax.lax.stop_gradient(state)
        constant = gradient == "stop"
        state, logits, coupling = routing_pass(
            routing, params, children, state, t, constant=constant
        )
        pose, activation = routing.finalize(params, state)
        seen.append(Trace(logits, coupling, pose, activation))
    aux = jax.tree.map(lambda *x: jnp.stack(x), *seen) if trace else None
    return RoutingOutput(pose, activation, coupling, aux)


def routing_pass(
    routing: Routing,
    params: Params,
    children: InputCapsules,
    state: State,
    t: int,
    *,
    constant=False,
) -> tuple[State, jax.Array, jax.Array]:
    """One pass: the next state, the logits and the coupling coefficients that led to it.

    Args:
      routing, params, children: see :func:`run`.
      state: from :func:`start` or from the pass before. t: number of the pass.
      constant: the coupling coefficients are, for differentiation.
    """
    logits = routing.logits(params, children, state, t)
    coupling = routing.couple(logits)
    if constant:
        coupling = jax.lax.stop_gradient(coupling)
    stats = routing.accumulate(params, children, coupling, state, t)
    return routing.update(params, stats, state, t), logits, coupling


def initial_routing_state(routing: Routing, params: Params, children: InputCapsules) -> State:
    """The state before the first pass, from the first of the children; a constant."""
    axis = children.votes.ndim - 3  # behind the positions of a convolutional layer
    first = jax.tree.map(lambda x: jax.lax.slice_in_dim(x, 0, 1, axis=axis), children)
    return jax.lax.stop_gradient(routing.init(params, first))


def hold_constants(routing: Routing, params: Params) -> Params:
    """Parameters through which gradients flow, except to those that are constants."""
    return {
        name: jax.lax.stop_gradient(value) if name in routing.constants else value
        for name, value in params.items()
    }


class BatchedPasses(NamedTuple):
    """How an implementation sums over all input capsules of a batch.

    ``inputs`` is a pytree of arrays of the implementation's own; ``t`` the number of the pass.
    See :mod:`capsjax.routing.engine`.
    """

    # (params, inputs) -> state before the first pass; a constant
    start: Callable[..., Any]
    # (params, inputs, state, t) -> statistics
    forward: Callable[..., Any]
    # (params, inputs, state, dstatistics, t, dinputs) -> (dparams, dstate, dinputs): dinputs of the
    # passes so far, None at first; None as a result leaves them to backward_inputs
    backward_state: Callable[..., tuple[Any, Any, Any]]
    # (params, inputs, [(t, state, dstatistics)] last pass first, constant) -> (dparams, dinputs);
    # constant: the coupling coefficients are. dparams of the two add up.
    backward_inputs: Callable[..., tuple[Any, Any]]
    batch_axis: int  # of states and statistics


def check_choice(argument: str, value: str, legal: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is one of the legal ones."""
    if value not in legal:
        raise ValueError(f"{argument} must be one of {', '.join(legal)}, not {value!r}")
