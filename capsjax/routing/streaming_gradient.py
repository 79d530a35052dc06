"""The passes of the streaming implementations, with a backward rule of their own.

The forward rule keeps, in addition to the inputs, only the state and the statistics of every pass,
O(J D) numbers per example. The backward rule takes the passes from last to first: it computes
the gradient by the statistics of pass t through ``update`` and then, by one more pass over the
input capsules, the gradient by the state that pass t started from. The gradients by the inputs
either come with that, or from one final pass, for all t at once, so that the votes of a tile are
computed once for all of them.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from capsjax.routing.base import Routing
from capsjax.routing.passes import BatchedPasses


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def iterate(plan: tuple[Routing, BatchedPasses, str], params: Any, inputs: Any) -> Any:
    """Computes the state after the last pass.

    Args:
      plan: the algorithm, its passes, and what is differentiated (full, stop or last).
      params: parameters that are not part of ``inputs``.
      inputs: the implementation's own pytree of arrays.
    """
    routing, passes, _ = plan
    state = passes.start(params, inputs)
    for t in range(routing.passes):
        stats = passes.forward(params, inputs, state, t)
        state = _update(routing, passes, t)(params, stats, state)
    return state


def _update(routing, passes, t):
    axis = passes.batch_axis
    function = functools.partial(routing.update, t=t)
    return jax.vmap(function, in_axes=(None, axis, axis), out_axes=axis)


def _forward(plan, params, inputs):
    routing, passes, _ = plan
    state = passes.start(params, inputs)
    history = []
    for t in range(routing.passes):
        stats = passes.forward(params, inputs, state, t)
        next_state, update_vjp = jax.vjp(_update(routing, passes, t), params, stats, state)
        history.append((t, state, update_vjp))
        state = next_state
    return state, (params, inputs, history)


def _backward(plan, residuals, state_grads):
    _, passes, gradient = plan
    params, inputs, history = residuals
    total_param_grads = jax.tree.map(jnp.zeros_like, params)
    input_grads = None  # of the passes so far, from implementations that sum them pass by pass
    pending_passes = []  # those whose gradients by the inputs are left to backward_inputs
    for t, state, update_vjp in reversed(history):
        param_grads, stats_grads, state_grads = update_vjp(state_grads)
        total_param_grads = jax.tree.map(jnp.add, total_param_grads, param_grads)
        if t and gradient == "full":
            param_grads, pass_grads, input_grads = passes.backward_state(
                params, inputs, state, stats_grads, t, input_grads
            )
            state_grads = jax.tree.map(jnp.add, state_grads, pass_grads)
            total_param_grads = jax.tree.map(jnp.add, total_param_grads, param_grads)
        if input_grads is None or not t:
            pending_passes.append((t, state, stats_grads))
        if gradient != "full":
            break
    param_grads, pending_grads = passes.backward_inputs(
        params, inputs, pending_passes, gradient == "stop"
    )
    if input_grads is not None:
        pending_grads = jax.tree.map(
            lambda pending, summed: (pending.astype(summed.dtype) + summed).astype(pending.dtype),
            pending_grads,
            input_grads,
        )
    return jax.tree.map(jnp.add, total_param_grads, param_grads), pending_grads


iterate.defvjp(_forward, _backward)
