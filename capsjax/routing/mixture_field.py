"""Mixture models over the positions of a convolutional layer, with a backward rule of their own.

The votes of one example are held as ``[P, I, D, J]``, so that sums over input capsules and sums
over components are both loops over contiguous memory. The gradient that JAX derives of the plain
form writes some ten arrays of the size of the votes in each pass. Here a pass reads the votes a few
times, and writes their gradient once.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from capsjax.backend import backend, materialize
from capsjax.precision import product
from capsjax.routing.accelerated import divided
from capsjax.routing.base import GRADIENTS, InputCapsules, Routing, RoutingOutput, check_choice
from capsjax.routing.field import over_field
from capsjax.routing.mixture import Gaussians
from capsjax.routing.moments import Sums
from capsjax.routing.passes import BatchedPasses, initial_routing_state
from capsjax.routing.streaming_gradient import iterate


class FieldInputs(NamedTuple):
    """What the passes over one example read."""

    votes: jax.Array  # [P, I, D, J]
    activation: jax.Array  # [P, I]
    first: InputCapsules  # the first input capsule of each position; a constant


def route_field(
    routing: Routing,
    params: dict[str, jax.Array],
    pose: jax.Array,
    activation: jax.Array,
    matrices: jax.Array,
    index: np.ndarray,
    gradient: str = "full",
) -> RoutingOutput:
    """Routes a batch in a convolutional layer whose routing is a mixture model.

    On CPU the examples come one after another, so that what a pass reads stays in the cache, and
    the backward rule computes the passes of an example again. Where more than one device is
    visible, except inside ``shard_map``, and on accelerators, they are computed together.

    Values and gradients are those of :func:`~capsjax.routing.run_routing` with
    :func:`~capsjax.routing.over_field`, without couplings in the output. There is no forward-mode
    differentiation. States are floating, and all fields of the Gaussians have their full shapes.

    Args:
      routing: of one position, made by :func:`~capsjax.routing.mixture.by_mixture`.
      params: its parameters.
      pose: poses of the input capsules that each position sees, ``[B, P, I, K]``.
      activation: their activations, ``[B, P, I]``.
      matrices: the transformation matrices, ``[I, K, D, J]``, of the type of the votes.
      index: :func:`~capsjax.routing.field_index`.
      gradient: full, stop or last, see :func:`~capsjax.routing.run_routing`.

    Raises:
      ValueError: unknown gradient.
    """
    check_choice("gradient", gradient, GRADIENTS)
    places, together = tuple(map(tuple, index.tolist())), backend() != "cpu" or divided()
    matrices = matrices.astype(jnp.result_type(matrices, *params.values()))
    return _route_batch(routing, gradient, places, together, params, pose, activation, matrices)


# Compiled once, also where nothing around it is.
@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _route_batch(routing, gradient, places, together, params, pose, activation, matrices):
    def one(example):
        return _route_example(routing, params, *example, matrices, np.array(places), gradient)

    run = jax.vmap(one) if together else functools.partial(jax.lax.map, jax.checkpoint(one))
    return RoutingOutput(*run((pose, activation)))


def _route_example(routing, params, pose, activation, matrices, index, gradient):
    I, K, D, J = matrices.shape
    turned = materialize(jnp.swapaxes(pose.astype(matrices.dtype), 0, 1))
    votes = product(turned, matrices.reshape(I, K, D * J), "ipk,ikn->ipn")
    votes = materialize(jnp.swapaxes(votes, 0, 1)).reshape(*index.shape, D, J)
    first = InputCapsules(_turned(votes[:, :1]), pose[:, :1], activation[:, :1])
    inputs = FieldInputs(votes, activation.astype(votes.dtype), jax.lax.stop_gradient(first))
    state = iterate((routing, field_passes(routing, index), gradient), params, inputs)
    return jax.vmap(routing.finalize, (None, 0))(params, state)


def field_passes(routing: Routing, index: np.ndarray) -> BatchedPasses:
    """Returns the passes of one example; its positions are the batch of states and statistics."""
    field = over_field(routing, index)
    gaussians = jax.vmap(routing.gaussians, (None, 0))

    def shift_of(g):  # a constant, as in the plain form, also for gradients of this gradient
        return _turned(jax.lax.stop_gradient(g.shift))

    def start(params, inputs):
        return initial_routing_state(field, params, inputs.first)

    def forward(params, inputs, state, t):
        g = gaussians(params, state)
        coupling = field.couple(_logits(g, inputs.votes, t), t)
        weights = coupling * inputs.activation[:, :, None]
        moments = _moments(weights, inputs.votes, shift_of(g))
        return Sums(jnp.sum(weights, 1), *map(_turned, moments))

    def backward(params, inputs, state, grads, t, constant):
        """The gradients of one pass by parameters, state and inputs."""
        votes, activation, first = inputs
        g, gaussians_vjp = jax.vjp(gaussians, params, state)
        coupling, coupling_vjp = jax.vjp(lambda b: field.couple(b, t), _logits(g, votes, t))
        weights = coupling * activation[:, :, None]
        weight_grads, part = _moments_backward(weights, votes, shift_of(g), grads)
        parts, g_grads = [part], jax.tree.map(jnp.zeros_like, g)
        if t and not constant:
            (logit_grads,) = coupling_vjp(weight_grads * activation[:, :, None])
            g_grads, part = _logits_backward(g, votes, logit_grads)
            parts.append(part)
        input_grads = FieldInputs(
            _vote_gradient(votes, parts),
            jnp.sum(weight_grads * coupling, 2),
            jax.tree.map(jnp.zeros_like, first),
        )
        return *gaussians_vjp(g_grads), input_grads

    def backward_state(params, inputs, state, grads, t, input_grads):
        *others, own = backward(params, inputs, state, grads, t, False)
        return *others, own if input_grads is None else jax.tree.map(jnp.add, own, input_grads)

    def backward_inputs(params, inputs, passes, constant):
        ((t, state, grads),) = passes
        param_grads, _, input_grads = backward(params, inputs, state, grads, t, constant)
        return param_grads, input_grads

    return BatchedPasses(start, forward, backward_state, backward_inputs, 0)


class _Part(NamedTuple):
    """A part of the gradient by the votes: weights [scale (votes - mean) + constant]."""

    weights: jax.Array  # [P, I, J]
    scale: jax.Array  # [P, D, J]
    mean: jax.Array  # [P, D, J]
    constant: jax.Array  # [P, D, J]


def _turned(x):
    """Exchange the last two axes: output capsules and components."""
    return jnp.swapaxes(x, -1, -2)


def _alone(function: Callable, *arrays: Any) -> Any:
    """Compute a function in loops of its own: otherwise XLA mixes sums with what reads them."""
    return _together(function(*_together(arrays)))


def _together(tree):
    return jax.lax.optimization_barrier(tree) if backend() == "cpu" else tree


def _logits(g: Gaussians, votes, t):
    """The logits ``[P, I, J]`` of pass t."""
    if t == 0:
        P, I, _, J = votes.shape
        return jnp.zeros((P, I, J), votes.dtype)

    def distance(votes, mean, scale):
        return jnp.sum(jnp.square(votes - mean[:, None]) * scale[:, None], 2)

    mean, variance = _turned(g.mean), _turned(g.twice_variance)
    return g.log_weight[:, None] - _alone(distance, votes, mean, 1 / variance)


def _logits_backward(g: Gaussians, votes, grads):
    """The gradients by the Gaussians, and the part of that by the votes."""
    mean, scale = _turned(g.mean), -2 / g.twice_variance
    first, second = map(_turned, _moments(grads, votes, mean))
    g_grads = Gaussians(
        mean=-scale * first,
        twice_variance=second / g.twice_variance / g.twice_variance,
        log_weight=jnp.sum(grads, 1),
        shift=jnp.zeros_like(g.shift),
    )
    return g_grads, _Part(grads, _turned(scale), mean, jnp.zeros_like(mean))


def _moments(weights, votes, shift):
    """The first and second moments ``[P, D, J]`` around the shift."""

    def both(weights, votes, shift):
        d = votes - shift[:, None]
        weighted = weights[:, :, None] * d
        return jnp.sum(jnp.concatenate([weighted, weighted * d], 2), 1)

    return jnp.split(_alone(both, weights, votes, shift), 2, axis=1)


def _moments_backward(weights, votes, shift, grads: Sums):
    """The gradient by the weights, and the part of that by the votes."""

    def by_weights(votes, shift, first, second):
        d = votes - shift[:, None]
        return jnp.sum(d * (first[:, None] + second[:, None] * d), 2)

    first, second = _turned(grads.first), _turned(grads.second)
    weight_grads = grads.weight[:, None] + _alone(by_weights, votes, shift, first, second)
    return weight_grads, _Part(weights, 2 * second, shift, first)


def _vote_gradient(votes, parts: list[_Part]):
    def of(part):
        scaled = part.scale[:, None] * (votes - part.mean[:, None])
        return part.weights[:, :, None] * (scaled + part.constant[:, None])

    return _together(sum(map(of, _together(parts))))
