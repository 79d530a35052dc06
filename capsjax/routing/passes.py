"""The loop of passes that gives a :class:`~capsjax.routing.base.Routing` its meaning."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from capsjax.routing.base import (
    GRADIENTS,
    InputCapsules,
    Params,
    Routing,
    RoutingOutput,
    State,
    Trace,
    check_choice,
)


def run_routing(
    routing: Routing,
    params: Params,
    capsules: InputCapsules,
    *,
    gradient: str = "full",
    trace: bool = False,
) -> RoutingOutput:
    """Routes one example with all its votes in memory: the meaning of a :class:`Routing`.

    Args:
      routing: the algorithm.
      params: its parameters, see ``routing.init_params``.
      capsules: the input capsules of one example.
      gradient: what is differentiated. ``full``: everything. ``stop``: the last pass, with its
        coupling coefficients as constants. ``last``: the last pass, with the state before it
        as a constant. The three give the same value.
      trace: also return a :class:`Trace`.

    Returns:
      :class:`RoutingOutput`.

    Raises:
      ValueError: unknown gradient.
    """
    check_choice("gradient", gradient, GRADIENTS)
    params = hold_constants(routing, params)
    state = initial_routing_state(routing, params, capsules)
    steps = []
    for t in range(routing.passes):
        if gradient != "full" and t + 1 == routing.passes:
            state = jax.lax.stop_gradient(state)
        constant = gradient == "stop"
        state, logits, coupling = routing_pass(
            routing, params, capsules, state, t, constant=constant
        )
        pose, activation = routing.finalize(params, state)
        steps.append(Trace(logits, coupling, pose, activation))
    aux = jax.tree.map(lambda *x: jnp.stack(x), *steps) if trace else None
    return RoutingOutput(pose, activation, coupling, aux)


def routing_pass(
    routing: Routing,
    params: Params,
    capsules: InputCapsules,
    state: State,
    t: int,
    *,
    constant: bool = False,
) -> tuple[State, jax.Array, jax.Array]:
    """Makes one pass over the input capsules.

    Args:
      routing, params, capsules: see :func:`run_routing`.
      state: from :func:`initial_routing_state` or from the pass before.
      t: number of the pass.
      constant: differentiate with the coupling coefficients as constants.

    Returns:
      The next state, and the logits and coupling coefficients that led to it.
    """
    logits = routing.logits(params, capsules, state, t)
    coupling = routing.couple(logits, t)
    if constant:
        coupling = jax.lax.stop_gradient(coupling)
    stats = routing.accumulate(params, capsules, coupling, state, t)
    return routing.update(params, stats, state, t), logits, coupling


def initial_routing_state(routing: Routing, params: Params, capsules: InputCapsules) -> State:
    """Computes the state before the first pass from the first input capsule; a constant."""
    axis = capsules.votes.ndim - 3  # after the positions of a convolutional layer
    first = jax.tree.map(lambda x: jax.lax.slice_in_dim(x, 0, 1, axis=axis), capsules)
    return jax.lax.stop_gradient(routing.init(params, first))


def hold_constants(routing: Routing, params: Params) -> Params:
    """Returns the parameters, with no gradient through those that are constants."""
    return {
        name: jax.lax.stop_gradient(value) if name in routing.constants else value
        for name, value in params.items()
    }


class BatchedPasses(NamedTuple):
    """The functions by which an implementation sums over all input capsules of a batch.

    ``inputs`` is the implementation's own pytree of arrays; ``t`` is the number of the pass.
    See :mod:`capsjax.routing.engine`.
    """

    # (params, inputs) -> state before the first pass; a constant
    start: Callable[..., Any]
    # (params, inputs, state, t) -> statistics
    forward: Callable[..., Any]
    # (params, inputs, state, stats_grads, t, input_grads) -> (param_grads, state_grads,
    # input_grads). The gradients by the inputs are those of the passes so far, None at first;
    # None as a result leaves them to backward_inputs.
    backward_state: Callable[..., tuple[Any, Any, Any]]
    # (params, inputs, [(t, state, stats_grads)] last pass first, constant) -> (param_grads,
    # input_grads). With ``constant`` the coupling coefficients are constants. The param_grads of
    # both functions add up.
    backward_inputs: Callable[..., tuple[Any, Any]]
    batch_axis: int  # of states and statistics
