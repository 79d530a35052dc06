"""Passes of any routing algorithm on a few input capsules at a time, differentiated by JAX.

The votes of a tile exist while its statistics are summed, forward and backward. The last tile can
be smaller than the others, so nothing is padded, and no algorithm needs a mask.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from capsjax.backend import typical_size
from capsjax.routing.base import InputCapsules, Routing, Sizes
from capsjax.routing.passes import BatchedPasses, initial_routing_state
from capsjax.votes import Votes

# Size of the votes of a tile. Measured on CPU: larger tiles do not fit the cache of a core.
TILE_BYTES = 640 * 1024


class TileInputs(NamedTuple):
    """The arrays that are divided into tiles, and the W that all tiles share."""

    u: Any  # [B, I, K]
    activation: Any  # [B, I]
    # A dictionary of arrays [I, ...]: parameters, and W if there is one per input capsule.
    per_input_capsule: Any
    W: Any  # otherwise; None if it is in the dictionary


def tile_passes(
    routing: Routing, votes: Votes, sizes: Sizes, params: dict, u, W, activation
) -> tuple[BatchedPasses, dict, TileInputs]:
    """Returns the passes, the shared parameters and the inputs of the streaming engine."""
    divided = {name: params[name] for name in routing.input_params}
    shared = {name: x for name, x in params.items() if name not in divided}
    if votes.per_input_capsule:
        divided["W"] = W
    inputs = TileInputs(u, activation, divided, None if votes.per_input_capsule else W)
    unit = votes.unit(W)
    tile = unit * max(
        1, TILE_BYTES // max(1, 4 * typical_size(u.shape[0]) * sizes.J * sizes.D * unit)
    )
    tile = min(tile, sizes.I)
    start, statistics = _functions_of_a_tile(routing, votes, unit)

    def forward(params, inputs, state, t):
        return _sum_tiles(lambda part: statistics(params, part, state, t), inputs, tile)

    def backward_state(params, inputs, state, stats_grads, t, input_grads):
        def one(part):
            statistics_vjp = jax.vjp(lambda state: statistics(params, part, state, t), state)[1]
            return statistics_vjp(stats_grads)[0]

        zero = jax.tree.map(jnp.zeros_like, params)  # backward_inputs computes the others
        return zero, _sum_tiles(one, inputs, tile), None

    def backward_inputs(params, inputs, passes, constant):
        def one(part):
            def all_statistics(params, part):
                return [statistics(params, part, state, t, constant) for t, state, _ in passes]

            statistics_vjp = jax.vjp(all_statistics, params, part)[1]
            return statistics_vjp([stats_grads for _, _, stats_grads in passes])

        return _map_tiles(one, inputs, tile)

    return BatchedPasses(start, forward, backward_state, backward_inputs, 0), shared, inputs


def _functions_of_a_tile(
    routing: Routing, votes: Votes, unit: int
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns the function of the initial state, and that of the statistics of a tile."""

    def input_capsules(inputs: TileInputs, u, activation):
        W = inputs.per_input_capsule["W"] if inputs.W is None else inputs.W
        return InputCapsules(votes.function(u, W), u.astype(activation.dtype), activation)

    def all_params(params, inputs):
        return params | {name: inputs.per_input_capsule[name] for name in routing.input_params}

    def start(params, inputs):
        first = _slice(inputs, 0, unit)
        own = all_params(params, first)

        def one(u, activation):
            return initial_routing_state(routing, own, input_capsules(first, u, activation))

        return jax.vmap(one)(first.u, first.activation)

    def statistics(params, inputs, state, t, constant=False):
        own = all_params(params, inputs)

        def one(u, activation, state):
            capsules = input_capsules(inputs, u, activation)
            coupling = routing.couple(routing.logits(own, capsules, state, t), t)
            if constant:
                coupling = jax.lax.stop_gradient(coupling)
            return routing.accumulate(own, capsules, coupling, state, t)

        return jax.vmap(one)(inputs.u, inputs.activation, state)

    return start, statistics


_AXES = TileInputs(u=1, activation=1, per_input_capsule=0, W=None)


def _by_axis(function: Callable, *trees: TileInputs) -> TileInputs:
    """Applies ``function(axis of the input capsules, leaves...)`` to what is divided."""
    return TileInputs(
        *(
            parts[0] if axis is None else jax.tree.map(lambda *x, a=axis: function(a, *x), *parts)
            for axis, *parts in zip(_AXES, *trees)
        )
    )


def _slice(inputs: TileInputs, at, size: int) -> TileInputs:
    return _by_axis(lambda axis, x: jax.lax.dynamic_slice_in_dim(x, at, size, axis), inputs)


def _over_tiles(step: Callable, carry: Any, inputs: TileInputs, tile: int) -> Any:
    """Applies ``step(carry, start, tile of inputs)`` to the tiles in turn, a smaller one last."""
    count, rest = divmod(inputs.u.shape[1], tile)
    carry = jax.lax.fori_loop(
        0, count, lambda n, carry: step(carry, n * tile, _slice(inputs, n * tile, tile)), carry
    )
    return step(carry, count * tile, _slice(inputs, count * tile, rest)) if rest else carry


def _zeros(function: Callable, part: TileInputs) -> Any:
    shapes = jax.eval_shape(function, part)
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def _sum_tiles(function: Callable, inputs: TileInputs, tile: int) -> Any:
    def step(total, _, part):
        return jax.tree.map(jnp.add, total, function(part))

    return _over_tiles(step, _zeros(function, _slice(inputs, 0, tile)), inputs, tile)


def _map_tiles(function: Callable, inputs: TileInputs, tile: int) -> tuple[Any, TileInputs]:
    """Sums the first result of ``function(tile)`` and puts the second in the place of the tile."""

    def step(carry, at, part):
        shared, whole = carry
        own, piece = function(part)
        placed = _by_axis(
            lambda axis, w, p: jax.lax.dynamic_update_slice_in_dim(w, p, at, axis), whole, piece
        )
        W = None if whole.W is None else whole.W + piece.W
        return jax.tree.map(jnp.add, shared, own), placed._replace(W=W)

    zeros = _zeros(function, _slice(inputs, 0, tile))[0], jax.tree.map(jnp.zeros_like, inputs)
    return _over_tiles(step, zeros, inputs, tile)
