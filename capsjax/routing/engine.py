r"""Routing of a batch, by whichever implementation: votes held whole, tiles of them, or none.

The streaming engine repeats passes over the input capsules and keeps, besides the inputs, only
the state and the statistics of every pass, O(J D) numbers an example. Its backward rule takes
the passes last to first: the gradient by the statistics of pass t through ``update``, then, by
one more pass over the input capsules, the gradient by the state that pass t started from. The
gradients by the inputs either come with that, or from a last pass, for all t at once, so that a
tile of votes is computed once for all of them.
"""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp

from capsjax.backend import backend
from capsjax.precision import accumulator
from capsjax.routing.agreement import PassKernels, agreement_passes, check_inputs
from capsjax.routing.base import (
    GRADIENTS,
    BatchedPasses,
    InputCapsules,
    Routing,
    RoutingOutput,
    Sizes,
    check_choice,
    hold_constants,
    run_routing,
)
from capsjax.routing.stream import STREAM
from capsjax.routing.tiles import tile_passes
from capsjax.squash import safe_norm
from capsjax.votes import VOTES

IMPLEMENTATIONS = ("auto", "naive", "stream")
# `auto` streams when the votes of a batch are larger than this. On CPU that is where sweeps
# become the faster form (16 images of MNIST): smaller votes stay in the cache, and sweeping has
# to transpose W first. On an accelerator it saves memory.
VOTES_BYTES = {"cpu": 8 * 2**20, "accelerator": 2**30}


def has_pass_kernels(routing: Routing, votes: str = "full") -> bool:
    """Whether a routing runs on :class:`~capsjax.routing.PassKernels`, hence on kernels."""
    return (
        votes == "full"
        and routing.query is not None
        and routing.normalizer in ("softmax", "leaky")
        and set(routing.child_params) <= {"prior"}
    )


def route(
    routing: Routing,
    params: dict[str, chex.Array],
    u: chex.Array,
    W: chex.Array,
    activation: chex.Array | None = None,
    *,
    votes: str = "full",
    gradient: str = "full",
    implementation: str | PassKernels = "auto",
    trace: bool = False,
) -> RoutingOutput:
    r"""Route a batch of input capsules to output capsules.

    The value and the gradients of :func:`~capsjax.routing.run_routing` on the votes of every example,
    with or without the votes in memory.

    Args:
      routing: the algorithm, for example ``capsjax.routing.make_routing("em")``.
      params: its parameters, from ``routing.init_params(key, Sizes(I, J, D, K))``.
      u: poses of the input capsules, ``[B, I, K]``.
      W: parameters of the votes, of the type of u; ``[I, J, D, K]`` for full ones.
      activation: of the input capsules, ``[B, I]``; None for the lengths of u.
      votes: how u votes, a name of :data:`capsjax.votes.VOTES`.
      gradient: what is differentiated: full, stop or last, see :func:`~capsjax.routing.run_routing`.
      implementation: ``naive`` holds the votes ``[B, I, J, D]`` and differentiates by JAX.
        ``stream`` works on a few input capsules at a time, with a backward rule of its own: a
        fraction of the memory, but without forward-mode differentiation and without coupling
        coefficients in the output. Where :func:`by_sweeps` holds it needs no votes at all
        (:mod:`capsjax.routing.agreement`) and is the faster one on CPU from 16 images on; a
        :class:`~capsjax.routing.PassKernels` then brings kernels of its own. ``auto`` is ``stream``
        for votes larger than a GiB, on CPU than 8 MiB if by sweeps, and otherwise ``naive``.
      trace: also return a :class:`~capsjax.routing.Trace`; always ``naive``.

    Returns:
      :class:`~capsjax.routing.RoutingOutput` of a batch, ``coupling`` None unless ``naive``.

    Raises:
      ValueError: an unknown option, or sweeps for an algorithm that has none.
      AssertionError: wrong or different types, or shapes that do not agree.

    Example:
      >>> from capsjax.routing import dynamic
      >>> u, W = jnp.ones((2, 5, 8)), jnp.ones((5, 3, 16, 8))  # B=2, I=5, K=8, J=3, D=16
      >>> route(dynamic(3), {}, u, W, implementation="stream").pose.shape
      (2, 3, 16)
    """
    check_choice("gradient", gradient, GRADIENTS)
    check_choice("votes", votes, VOTES)
    sweepable = has_pass_kernels(routing, votes)
    sizes = _check(routing, params, u, W, activation, VOTES[votes])
    if not isinstance(implementation, PassKernels):
        check_choice("implementation", implementation, IMPLEMENTATIONS)
    elif not sweepable:
        raise ValueError(f"routing {routing.name!r} with {votes} votes has no sweeps: use stream")
    params = hold_constants(routing, params)
    if activation is None:
        activation = safe_norm(u)
    activation = activation.astype(accumulator(u.dtype))

    if trace or implementation == "naive":
        streams = False
    elif implementation == "auto":
        streams = _streams(4 * u.shape[0] * sizes.I * sizes.J * sizes.D, sweepable)
    else:
        streams = True
    if not streams:
        return _run_batch(routing, params, u, W, activation, VOTES[votes], gradient, trace)
    if sweepable:
        sweeps = implementation if isinstance(implementation, PassKernels) else STREAM
        passes, params, inputs = agreement_passes(routing, sweeps, params, u, W)
    else:
        passes, params, inputs = tile_passes(routing, VOTES[votes], sizes, params, u, W, activation)
    state = _iterate((routing, passes, gradient), params, inputs)
    finalize = jax.vmap(routing.finalize, (None, passes.batch_axis))
    return RoutingOutput(*finalize(params, state))


def _check(routing, params, u, W, activation, votes) -> Sizes:
    check_inputs(u, W, full=votes.name == "full")
    B, I, K = u.shape
    _, J, D = jax.eval_shape(votes.function, jax.ShapeDtypeStruct((I, K), u.dtype), W).shape
    sizes = Sizes(I, J, D, K)
    if activation is not None:
        chex.assert_shape(activation, (B, I), custom_message="activation must be [B, I] of u")
    expected = jax.eval_shape(lambda: routing.init_params(jax.random.key(0), sizes))
    if params.keys() != expected.keys():
        names = ", ".join(expected) or "none"
        raise AssertionError(f"params of routing {routing.name!r} are {names}, not {list(params)}")
    for name, value in params.items():
        message = f"{name} must be {expected[name].shape} for I, J, D, K = {tuple(sizes)}"
        chex.assert_shape(value, expected[name].shape, custom_message=message)
    return sizes


def _streams(votes: int, sweepable: bool) -> bool:
    cpu = backend() == "cpu" and sweepable
    return votes > VOTES_BYTES["cpu" if cpu else "accelerator"]


def _run_batch(routing, params, u, W, activation, votes, gradient, trace) -> RoutingOutput:
    def one(u, activation):
        children = InputCapsules(votes.function(u, W), u.astype(activation.dtype), activation)
        return run_routing(routing, params, children, gradient=gradient, trace=trace)

    return jax.vmap(one)(u, activation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _iterate(plan: tuple[Routing, BatchedPasses, str], params: Any, inputs: Any) -> Any:
    """The state after the last pass."""
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
        after, pull = jax.vjp(_update(routing, passes, t), params, stats, state)
        history.append((t, state, pull))
        state = after
    return state, (params, inputs, history)


def _backward(plan, residuals, dstate):
    routing, passes, gradient = plan
    params, inputs, history = residuals
    dparams = jax.tree.map(jnp.zeros_like, params)
    left, found = [], None
    for t, state, pull in reversed(history):
        dp, dstats, dstate = pull(dstate)
        dparams = jax.tree.map(jnp.add, dparams, dp)
        if t and gradient == "full":
            dp, through, found = passes.backward_state(params, inputs, state, dstats, t, found)
            dstate = jax.tree.map(jnp.add, dstate, through)
            dparams = jax.tree.map(jnp.add, dparams, dp)
        if found is None or not t:
            left.append((t, state, dstats))
        if gradient != "full":
            break
    dp, dinputs = passes.backward_inputs(params, inputs, left, gradient == "stop")
    if found is not None:
        dinputs = jax.tree.map(lambda d, f: (d.astype(f.dtype) + f).astype(d.dtype), dinputs, found)
    return jax.tree.map(jnp.add, dparams, dp), dinputs


_iterate.defvjp(_forward, _backward)
