r"""Passes over input capsules that are divided among devices.

Statistics are sums over the input capsules. Each device sums those of its own ones, and the sums
over the devices are those of all, so every device computes the same next state:

.. math:: \mathrm{stats} = \textstyle\sum_{d} \sum_{i \in I_d}
          \mathrm{accumulate}(x_i, c_i, \mathrm{state})

The gradients by a state are sums over its devices in the same way. Those by poses, activations and
matrices of the input capsules stay on the device that has them.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from capsjax.routing.base import Routing, RoutingOutput
from capsjax.routing.passes import BatchedPasses
from capsjax.votes import Votes


class CapsuleShards(NamedTuple):
    """The devices among which the input capsules of a layer are divided, for ``route``.

    The other axes of the mesh are left to the compiler, so they must have ``AxisType.Auto``.
    """

    mesh: Mesh
    axis: str  # of the mesh, along which the input capsules are divided

    @property
    def count(self) -> int:
        """The number of parts."""
        return self.mesh.shape[self.axis]


class Summed(NamedTuple):
    """What the streaming implementation needs besides an algorithm and its passes over a part."""

    routing: Routing
    passes: BatchedPasses
    state: Callable[[Any], Any] = lambda state: state  # to be applied to the last state


def divide(
    shards: CapsuleShards,
    run: Callable[..., RoutingOutput],
    routing: Routing,
    votes: Votes,
    params: dict[str, jax.Array],
    u: jax.Array,
    W: jax.Array,
    activation: jax.Array,
) -> RoutingOutput:
    """Runs the passes on every device, over its own input capsules.

    Args:
      shards: the devices.
      run: ``run(params, u, W, activation, sum_over_devices)`` is the streaming implementation for
        some of the input capsules; see :func:`sum_over_devices` for its last argument.
      routing, votes, params, u, W, activation: see :func:`capsjax.routing.route`.

    Raises:
      ValueError: the input capsules can't be divided into equal parts.
    """
    I, unit = u.shape[1], votes.unit(W)
    if I % (shards.count * unit):
        of = f" of whole groups of {unit} types" if unit > 1 else ""
        raise ValueError(f"{I} input capsules can't be divided into {shards.count} equal parts{of}")
    whole, first, second = (
        PartitionSpec(*spec) for spec in ((), (shards.axis,), (None, shards.axis))
    )
    specs = {name: first if name in routing.input_params else whole for name in params}
    around = functools.partial(sum_over_devices, shards)
    # With check_vma=True the loops over tiles would have to say which of their arrays differ
    # between devices, whether they are divided or not.
    return jax.shard_map(
        lambda *arrays: run(*arrays, around),
        mesh=shards.mesh,
        in_specs=(specs, second, first if votes.per_input_capsule else whole, second),
        out_specs=whole,
        axis_names={shards.axis},
        check_vma=False,
    )(params, u, W, activation)


def sum_over_devices(shards: CapsuleShards, routing: Routing, passes: BatchedPasses) -> Summed:
    """Returns an algorithm and passes whose states are those of all input capsules.

    Outside of ``shard_map`` a gradient by an output that all devices have is divided equally among
    them, and gradients by inputs that all have are summed. Inside, gradients by states are whole.
    """
    axis, total = shards.axis, functools.partial(jax.lax.psum, axis_name=shards.axis)

    def start(params, inputs):
        # That of the first input capsule of all, which the first device has.
        is_first = jax.lax.axis_index(axis) == 0
        state = passes.start(params, inputs)
        return total(jax.tree.map(lambda x: jnp.where(is_first, x, jnp.zeros_like(x)), state))

    def forward(params, inputs, state, t):
        return total(passes.forward(params, inputs, state, t))

    def backward_state(params, inputs, state, stats_grads, t, input_grads):
        found = passes.backward_state(params, inputs, state, stats_grads, t, input_grads)
        param_grads, state_grads, input_grads = found
        return param_grads, total(state_grads), input_grads

    def update(params, stats, state, t):
        return routing.update(_shared(shards.count, params), stats, state, t)

    return Summed(
        dataclasses.replace(routing, update=update),
        passes._replace(start=start, forward=forward, backward_state=backward_state),
        functools.partial(_whole_gradient, axis),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _whole_gradient(axis, state):
    """Returns a state whose gradient is the sum of what the devices have of it."""
    return state


_whole_gradient.defvjp(
    lambda axis, state: (state, None), lambda axis, _, grads: (jax.lax.psum(grads, axis),)
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _shared(count, params):
    """Returns parameters whose gradient, the same on all devices, is divided among them."""
    return params


_shared.defvjp(
    lambda count, params: (params, None),
    lambda count, _, grads: (jax.tree.map(lambda g: g / count, grads),),
)
