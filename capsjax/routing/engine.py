"""Routing of a batch, by one of several implementations.

``naive`` holds all votes, and JAX differentiates it. The streaming implementations sum over a few
input capsules at a time and share the backward rule of :mod:`capsjax.routing.streaming_gradient`.
They run on pass kernels (:mod:`capsjax.routing.agreement`), which hold no votes, where an algorithm
allows that, and otherwise on tiles of votes (:mod:`capsjax.routing.tiles`).
"""

import functools

import chex
import jax

from capsjax.backend import backend, typical_size
from capsjax.precision import accumulator
from capsjax.routing.accelerated import select_kernels
from capsjax.routing.agreement import PassKernels, agreement_passes, check_inputs
from capsjax.routing.base import (
    GRADIENTS,
    InputCapsules,
    Routing,
    RoutingOutput,
    Sizes,
    check_choice,
)
from capsjax.routing.passes import hold_constants, run_routing
from capsjax.routing.shards import CapsuleShards, Summed, divide
from capsjax.routing.stream import STREAM
from capsjax.routing.streaming_gradient import iterate
from capsjax.routing.tiles import tile_passes
from capsjax.squash import safe_norm
from capsjax.votes import VOTES

PALLAS = ("pallas", "pallas_interpret")
IMPLEMENTATIONS = ("auto", "naive", "stream", *PALLAS)
# `auto` streams when the votes of a batch are larger than this. On CPU that is where pass kernels
# become the faster form (16 images of MNIST): smaller votes stay in the cache, and pass kernels
# have to transpose W first. On an accelerator it saves memory.
VOTES_BYTES = {"cpu": 8 * 2**20, "accelerator": 2**30}


def has_pass_kernels(routing: Routing, votes: str = "full") -> bool:
    """Returns whether a routing can run on :class:`~capsjax.routing.PassKernels`."""
    return (
        votes == "full"
        and routing.query is not None
        and routing.normalizer in ("softmax", "leaky")
        and set(routing.input_params) <= {"prior"}
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
    implementation: str | PassKernels | CapsuleShards = "auto",
    trace: bool = False,
) -> RoutingOutput:
    r"""Routes a batch of input capsules to output capsules.

    The value and the gradients are those of :func:`~capsjax.routing.run_routing` on the votes of
    every example, with or without the votes in memory.

    Args:
      routing: the algorithm, for example ``capsjax.routing.make_routing("em")``.
      params: its parameters, from ``routing.init_params(key, Sizes(I, J, D, K))``.
      u: poses of the input capsules, ``[B, I, K]``.
      W: parameters of the votes, of the type of u; ``[I, J, D, K]`` for full votes.
      activation: of the input capsules, ``[B, I]``; None for the lengths of u.
      votes: how votes depend on u, a name of :data:`capsjax.votes.VOTES`.
      gradient: what is differentiated: full, stop or last, see
        :func:`~capsjax.routing.run_routing`.
      implementation: ``naive`` materializes the votes ``[B, I, J, D]`` and is differentiated by
        JAX. ``stream`` works on a few input capsules at a time, with a backward rule of its own:
        it needs a fraction of the memory, but has no forward-mode differentiation, and no coupling
        coefficients in its output. Where :func:`has_pass_kernels` holds it needs no votes at all
        (:mod:`capsjax.routing.agreement`) and is the faster one on CPU from 16 images on; a
        :class:`~capsjax.routing.PassKernels` then replaces its kernels. For other algorithms
        with full votes, its ``votes`` computes the votes and routing continues as in ``naive``.
        ``pallas`` takes the pass kernels for this device (:mod:`kernels.api`), and
        ``pallas_interpret`` runs them slowly on any device. Where the algorithm can run on them, on
        an accelerator, if one device is visible or inside ``shard_map``, ``auto`` is ``pallas`` for
        shapes that were approved (:mod:`kernels.approval`) and ``stream`` for others; otherwise
        ``stream`` for votes larger than a GiB, or than 8 MiB on CPU with pass kernels; otherwise
        ``naive``. (:class:`capsjax.ConvCapsules` with ``em`` or ``vb`` has a rule of its own.)
        :class:`~capsjax.routing.CapsuleShards` streams on several devices, each over its part of
        the input capsules.
      trace: also return a :class:`~capsjax.routing.Trace`; always ``naive``.

    Returns:
      :class:`~capsjax.routing.RoutingOutput` of a batch; ``coupling`` is None unless the
      implementation keeps all votes.

    Raises:
      ValueError: an unknown option, kernels that can't run on this device, or pass kernels for an
        algorithm that can't run on them, or input capsules that can't be divided among devices.
      AssertionError: wrong or different types, or shapes that do not agree.

    Example:
      >>> from capsjax.routing import dynamic
      >>> u, W = jnp.ones((2, 5, 8)), jnp.ones((5, 3, 16, 8))  # B=2, I=5, K=8, J=3, D=16
      >>> route(dynamic(3), {}, u, W, implementation="stream").pose.shape
      (2, 3, 16)
    """
    check_choice("gradient", gradient, GRADIENTS)
    check_choice("votes", votes, VOTES)
    sizes = _check(routing, params, u, W, activation, VOTES[votes])
    votes_bytes = 4 * typical_size(u.shape[0]) * sizes.I * sizes.J * sizes.D
    has_kernels = has_pass_kernels(routing, votes)
    if implementation in PALLAS or (implementation == "auto" and has_kernels):
        implementation = select_kernels(implementation)
    chosen = _choose(implementation, routing, votes, has_kernels, votes_bytes)
    params = hold_constants(routing, params)
    if activation is None:
        activation = safe_norm(u)
    activation = activation.astype(accumulator(u.dtype))

    if trace or chosen == "naive":
        return _run_batch(routing, params, u, W, activation, VOTES[votes], gradient, trace)
    if chosen == "votes":
        return _run_votes(routing, params, implementation.votes(u, W), u, activation, gradient)
    stream = functools.partial(_stream, routing, chosen, VOTES[votes], sizes, gradient)
    if isinstance(implementation, CapsuleShards):
        parts = params, u, W, activation
        return divide(implementation, stream, routing, VOTES[votes], *parts)
    return stream(params, u, W, activation)


def _stream(
    routing, chosen, votes, sizes, gradient, params, u, W, activation, around=Summed
) -> RoutingOutput:
    """Routes by passes over all input capsules, or over those of one device among several.

    ``around(routing, passes)`` gives :class:`~capsjax.routing.shards.Summed`.
    """
    sizes = sizes._replace(I=u.shape[1])
    if chosen == "tiles":
        passes, params, inputs = tile_passes(routing, votes, sizes, params, u, W, activation)
    else:
        passes, params, inputs = agreement_passes(routing, chosen, params, u, W)
    summed = around(routing, passes)
    state = summed.state(iterate((summed.routing, summed.passes, gradient), params, inputs))
    finalize = jax.vmap(routing.finalize, (None, passes.batch_axis))
    return RoutingOutput(*finalize(params, state))


def _choose(
    implementation: str | PassKernels | CapsuleShards,
    routing: Routing,
    votes: str,
    has_kernels: bool,
    votes_bytes: int,
) -> str | PassKernels:
    """Returns ``naive``, ``votes`` (of a kernel), ``tiles``, or the pass kernels to run on."""
    if isinstance(implementation, CapsuleShards):
        return STREAM if has_kernels else "tiles"
    if isinstance(implementation, PassKernels):
        if not has_kernels and votes == "full" and implementation.votes is not None:
            return "votes"
        if not has_kernels:
            raise ValueError(
                f"routing {routing.name!r} with {votes} votes can't run on pass kernels: use stream"
            )
        return implementation
    check_choice("implementation", implementation, IMPLEMENTATIONS)
    if implementation == "auto":
        limit = VOTES_BYTES["cpu" if has_kernels and backend() == "cpu" else "accelerator"]
        implementation = "stream" if votes_bytes > limit else "naive"
    if implementation == "naive":
        return "naive"
    return STREAM if has_kernels else "tiles"


def _check(routing, params, u, W, activation, votes) -> Sizes:
    """Checks types and shapes, and returns the sizes."""
    check_inputs(u, W, full=votes.name == "full")
    B, I, K = u.shape
    if not I:
        raise ValueError("there are no input capsules")
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


def _run_batch(routing, params, u, W, activation, votes, gradient, trace) -> RoutingOutput:
    def one(u, activation):
        capsules = InputCapsules(votes.function(u, W), u.astype(activation.dtype), activation)
        return run_routing(routing, params, capsules, gradient=gradient, trace=trace)

    return jax.vmap(one)(u, activation)


def _run_votes(routing, params, votes, u, activation, gradient) -> RoutingOutput:
    """Routes a batch of votes ``[B, I, J, D]`` that are computed outside of ``vmap``."""

    def one(votes, u, activation):
        capsules = InputCapsules(votes, u.astype(activation.dtype), activation)
        return run_routing(routing, params, capsules, gradient=gradient)

    return jax.vmap(one)(votes, u, activation)
