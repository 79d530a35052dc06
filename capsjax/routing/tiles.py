"""Passes of any routing algorithm on a few input capsules at a time, differentiated by JAX.

A tile's votes exist while its statistics are summed, forward and backward. The last tile may be
smaller, so nothing is padded and no algorithm needs to mask what is not there.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from capsjax.routing.base import BatchedPasses, InputCapsules, Routing, Sizes, initial_routing_state
from capsjax.votes import Votes

# Of the votes of a tile. Measured on CPU: larger ones leave the cache of a core.
TILE_BYTES = 640 * 1024


class TileInputs(NamedTuple):
    """What is divided into tiles, and what all tiles share."""

    u: Any  # [B, I, K]
    activation: Any  # [B, I]
    per_child: Any  # a dictionary of arrays [I, ...]: parameters, and W if it is per child
    W: Any  # otherwise, None if it is not


def tile_passes(
    routing: Routing, votes: Votes, sizes: Sizes, params: dict, u, W, activation
) -> tuple[BatchedPasses, dict, TileInputs]:
    """What :mod:`capsjax.routing.engine` needs: the passes, shared parameters, and inputs."""
    per_child = {name: params[name] for name in routing.child_params}
    shared = {name: x for name, x in params.items() if name not in per_child}
    if votes.per_child:
        per_child["W"] = W
    inputs = TileInputs(u, activation, per_child, None if votes.per_child else W)
    unit = votes.unit(W)
    tile = unit * max(1, TILE_BYTES // max(1, 4 * u.shape[0] * sizes.J * sizes.D * unit))
    tile = min(tile, sizes.I)

    def children(inputs: TileInputs, u, activation):
        W = inputs.per_child["W"] if inputs.W is None else inputs.W
        return InputCapsules(votes.function(u, W), u.astype(activation.dtype), activation)

    def all_params(params, inputs):
        return params | {name: inputs.per_child[name] for name in routing.child_params}

    def begin(params, inputs):
        few = _slice(inputs, 0, unit)
        own = all_params(params, few)

        def one(u, activation):
            return initial_routing_state(routing, own, children(few, u, activation))

        return jax.vmap(one)(few.u, few.activation)

    def statistics(params, inputs, state, t, constant=False):
        own = all_params(params, inputs)

        def one(u, activation, state):
            x = children(inputs, u, activation)
            coupling = routing.couple(routing.logits(own, x, state, t))
            if constant:
                coupling = jax.lax.stop_gradient(coupling)
            return routing.accumulate(own, x, coupling, state, t)

        return jax.vmap(one)(inputs.u, inputs.activation, state)

    def forward(params, inputs, state, t):
        return _sum_tiles(lambda part: statistics(params, part, state, t), inputs, tile)

    def backward_state(params, inputs, state, dstats, t, dinputs):
        def one(part):
            pull = jax.vjp(lambda state: statistics(params, part, state, t), state)[1]
            return pull(dstats)[0]

        zero = jax.tree.map(jnp.zeros_like, params)  # backward_inputs counts these
        return zero, _sum_tiles(one, inputs, tile), None

    def backward_inputs(params, inputs, passes, constant):
        def one(part):
            def all_statistics(params, part):
                return [statistics(params, part, state, t, constant) for t, state, _ in passes]

            pull = jax.vjp(all_statistics, params, part)[1]
            return pull([dstats for _, _, dstats in passes])

        return _map_tiles(one, inputs, tile)

    return BatchedPasses(begin, forward, backward_state, backward_inputs, 0), shared, inputs


_AXES = TileInputs(u=1, activation=1, per_child=0, W=None)


def _by_axis(function: Callable, *trees: TileInputs) -> TileInputs:
    """``function(axis of the input capsules, leaves...)`` for everything that is divided."""
    return TileInputs(
        *(
            parts[0] if axis is None else jax.tree.map(lambda *x, a=axis: function(a, *x), *parts)
            for axis, *parts in zip(_AXES, *trees)
        )
    )


def _slice(inputs: TileInputs, at, size: int) -> TileInputs:
    return _by_axis(lambda axis, x: jax.lax.dynamic_slice_in_dim(x, at, size, axis), inputs)


def _over_tiles(step: Callable, carry: Any, inputs: TileInputs, tile: int) -> Any:
    """``step(carry, start, tile of inputs)`` for all tiles in turn, the last maybe smaller."""
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
    """``function(tile) -> (shared, tile)``: the sum of the first, the second in its place."""

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
