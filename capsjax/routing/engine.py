"""Dynamic routing of a batch by whichever implementation: votes held whole, or sweeps."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp

from capsjax.backend import backend
from capsjax.precision import accumulator
from capsjax.routing.dynamic import RoutingOutput, check_choice, check_options, dynamic_routing
from capsjax.routing.stream import STREAM
from capsjax.routing.sweeps import Inputs, Sweeps, check_inputs, even_sweep
from capsjax.squash import safe_norm, squash
from capsjax.votes import prediction_vectors

IMPLEMENTATIONS = ("auto", "naive", "stream")
# `auto` streams when the votes of a batch are larger than this. On CPU that is where streaming
# becomes the faster one (16 images of MNIST): smaller votes stay in the cache, and streaming
# has to transpose W first. On an accelerator it saves memory.
VOTES_BYTES = {"cpu": 8 * 2**20, "accelerator": 2**30}


def route(
    u: chex.Array,
    W: chex.Array,
    iterations: int = 3,
    *,
    prior: chex.Array | None = None,
    bias: chex.Array | None = None,
    normalizer: str = "softmax",
    gradient: str = "full",
    implementation: str | Sweeps = "auto",
) -> RoutingOutput:
    r"""Dynamic routing from the outputs of input capsules, for a batch.

    The value and the gradients of :func:`~capsjax.routing.dynamic_routing` on the votes
    :math:`\hat u_{j|i} = W_{ij} u_i`, with or without the votes in memory.

    Args:
      u: outputs of the input capsules, ``[B, I, K]``.
      W: transformation matrices, ``[I, J, D, K]``, of the type of u.
      iterations, bias, normalizer, gradient: see :func:`~capsjax.routing.dynamic_routing`.
      prior: first logits ``[I, J]``, or None for zero.
      implementation: ``naive`` holds the votes ``[B, I, J, D]`` and differentiates by JAX.
        ``stream`` works on a few input capsules at a time, with a backward rule of its own
        (see :mod:`capsjax.routing.sweeps`): a fraction of the memory, faster on CPU for
        batches of 16 images and more, but without forward-mode differentiation and without
        coupling coefficients in the output.
        ``auto`` is ``stream`` for votes of more than 8 MiB on CPU, a GiB elsewhere. A
        :class:`~capsjax.routing.Sweeps` brings kernels of its own.

    Returns:
      :class:`~capsjax.routing.RoutingOutput` of a batch, ``coupling`` None unless ``naive``.

    Raises:
      ValueError: iterations below one, or an unknown option.
      AssertionError: wrong or different types, or shapes that do not agree.

    Example:
      >>> u, W = jnp.ones((2, 5, 8)), jnp.ones((5, 3, 16, 8))  # B=2, I=5, K=8, J=3, D=16
      >>> route(u, W, implementation="stream").pose.shape
      (2, 3, 16)
    """
    check_options(iterations, normalizer, gradient)
    check_inputs(u, W, prior)
    if bias is not None:
        J, D = W.shape[1:3]
        chex.assert_shape(bias, (J, D), custom_message=f"bias must be [J, D] of W {W.shape}")
    if not isinstance(implementation, Sweeps):
        check_choice("implementation", implementation, IMPLEMENTATIONS)
        if implementation == "auto":
            implementation = _choose(u, W)
        if implementation == "naive":
            options = {"normalizer": normalizer, "gradient": gradient}
            return _route_votes(u, W, iterations, prior=prior, bias=bias, **options)
        implementation = STREAM

    inputs = Inputs(
        u.transpose(2, 1, 0), W.transpose(1, 3, 2, 0), None if prior is None else prior.T
    )
    if iterations == 1 and prior is None:
        v = _output(even_sweep(inputs, normalizer), bias)
    else:
        v = _iterate((implementation, iterations, normalizer, gradient), inputs, bias)
    pose = v.transpose(2, 0, 1)
    return RoutingOutput(pose=pose, activation=safe_norm(pose), coupling=None)


def _choose(u, W) -> str:
    I, J, D, _ = W.shape
    votes = 4 * u.shape[0] * I * J * D
    return (
        "stream" if votes > VOTES_BYTES["cpu" if backend() == "cpu" else "accelerator"] else "naive"
    )


def _route_votes(u, W, iterations, **options) -> RoutingOutput:
    votes = jax.vmap(prediction_vectors, (0, None))(u, W)
    route_one = functools.partial(dynamic_routing, iterations=iterations, **options)
    return jax.vmap(route_one)(votes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _iterate(options: tuple, inputs: Inputs, bias: Any) -> jax.Array:
    """v ``[J, D, B]`` after the last iteration."""
    return _forward(options, inputs, bias)[0]


def _forward(options, inputs, bias):
    sweeps, iterations, normalizer, _ = options
    V, states = None, []
    for _ in range(iterations):
        if V is None and inputs.prior is None:
            S = even_sweep(inputs, normalizer)
        else:
            if V is None:
                wide = accumulator(inputs.W.dtype)
                V = jnp.zeros((*inputs.W.shape[0:3:2], inputs.u.shape[2]), wide)
            S = sweeps.forward(inputs, V, normalizer)
        states.append((V, S))
        v = _output(S, bias)
        V = v if V is None else V + v
    return v, (inputs, bias, states)


def _output(S, bias):
    return squash(S if bias is None else S + bias[:, :, None].astype(S.dtype), axis=1)


def _backward(options, residuals, dv):
    sweeps, _, normalizer, gradient = options
    inputs, bias, states = residuals
    Vs, dSs = [], []
    for V, S in reversed(states):
        (dS,) = jax.vjp(lambda S: _output(S, bias), S)[1](dv)
        Vs += [] if V is None else [V]
        dSs.append(dS)
        if gradient != "full":
            break
        # v of the iteration before is a part of this V and of every later one.
        if len(dSs) < len(states):
            dV = sweeps.backward_state(inputs, V, dS, normalizer)
            dv = dV if len(dSs) == 1 else dv + dV
    dSs = jnp.stack(dSs)
    dinputs = sweeps.backward_inputs(inputs, jnp.stack(Vs), dSs, normalizer, gradient == "stop")
    dbias = None if bias is None else jnp.sum(dSs, axis=(0, 3)).astype(bias.dtype)
    return dinputs, dbias


_iterate.defvjp(_forward, _backward)
