"""The passes of routing as Pallas kernels for NVIDIA GPUs (Triton).

The mathematics and its letters are those of :mod:`capsjax.routing.agreement`. Votes do not
exist; everything is products of small matrices, with W transposed to [J, K, D, I]:

    W_jk [D, ib]    u_k, c_j, db_j [ib, bb]    V_j, S_j [D, bb]

A program of the grid owns a block of input capsules and of examples. It holds u in registers
and walks over the output capsules j twice, so that J is not limited: the coupling coefficients
of a capsule need the logits of all j, which are not kept but computed again. What remains of
the first walk is, for each capsule and example,

    lse = log sum_j exp(b_j)     delta = sum_j c_j dc_j

with which c_j = exp(b_j - lse) and db_j = c_j (dc_j - delta) follow for each j separately. Sums
over capsules (S, dV) leave a program as partial sums, added up outside: the order of the additions
is always the same, as it would not be with atomic ones. dW, a sum over the batch, has a kernel
of its own, in which a program owns one j and walks over the examples, and reads lse and delta
from memory.

I and B are padded with zeros to whole blocks, D to a power of two of at least 16, the smallest
that tensor cores multiply.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from capsjax.routing import PassInputs
from capsjax.routing.agreement import even_coupling
from kernels import routing_steps_gpu as steps
from kernels.blocks import dot, unpad
from kernels.routing_blocks import input_specs, unpad_gradients

DEFAULT = steps.BlockConfig()


def forward(inputs: PassInputs, V, normalizer: str, *, config=DEFAULT, interpret=False):
    """Returns S ``[J, D, B]``; see :class:`capsjax.routing.PassKernels`."""
    return _sum_over_capsules(_forward_kernel, inputs, (V,), normalizer, config, interpret)


def backward_state(
    inputs: PassInputs, V, dS, normalizer: str, input_grads, *, config=DEFAULT, interpret=False
):
    """Returns dV ``[J, D, B]`` alone; see :class:`capsjax.routing.PassKernels`."""
    kernel = _backward_state_kernel
    return _sum_over_capsules(kernel, inputs, (V, dS), normalizer, config, interpret), None


def _sum_over_capsules(kernel, inputs, states, normalizer, config, interpret):
    """Calls a kernel whose output, like the states, is the partial sum of a block of capsules."""
    inputs, config = steps.arrange(inputs, config)
    shape = states[0].shape
    states = tuple(steps.pad_state(s, config) for s in states)
    J, D, B = states[0].shape
    blocks = inputs.u.shape[1] // config.capsules
    state = pl.BlockSpec((J, D, config.examples), lambda i, b: (0, 0, b))
    part = pl.BlockSpec((None, J, D, config.examples), lambda i, b: (i, 0, 0, b))
    (parts,) = steps.call(
        functools.partial(kernel, normalizer=normalizer),
        f"routing_pass{kernel.__name__.removesuffix('_kernel')}",
        grid=(blocks, B // config.examples),
        in_specs=(input_specs(inputs, config, lambda i, b: (i, b)), *(state for _ in states)),
        outputs=[((blocks, J, D, B), part)],
        num_warps=4,
        interpret=interpret,
    )(inputs, *states)
    return unpad(jnp.sum(parts, axis=0), shape)


def _forward_kernel(inputs_ref, V_ref, part_ref, *, normalizer):
    u, V = steps.read_u(inputs_ref), functools.partial(steps.read, V_ref)
    lse, _ = steps.statistics(inputs_ref, u, V, None, normalizer)

    def one(j, _):
        W = steps.read_W(inputs_ref, j)
        c = jnp.exp(steps.logits(inputs_ref, W, u, V, j) - lse)
        part_ref[j] = steps.weighted_votes(W, u, c, inputs_ref.u.dtype)

    jax.lax.fori_loop(0, len(part_ref), one, None)


def _backward_state_kernel(inputs_ref, V_ref, dS_ref, part_ref, *, normalizer):
    u, V, dS = (
        steps.read_u(inputs_ref),
        *(functools.partial(steps.read, ref) for ref in (V_ref, dS_ref)),
    )
    lse, delta = steps.statistics(inputs_ref, u, V, dS, normalizer)

    def one(j, _):
        W = steps.read_W(inputs_ref, j)
        c = jnp.exp(steps.logits(inputs_ref, W, u, V, j) - lse)
        db = c * (steps.dots(W, u, dS(j)) - delta)
        part_ref[j] = steps.weighted_votes(W, u, db, inputs_ref.u.dtype)

    jax.lax.fori_loop(0, len(part_ref), one, None)


def backward_inputs(
    inputs, Vs, dSs, normalizer, constant, *, config=DEFAULT, interpret=False
) -> PassInputs:
    """Returns gradients by the inputs; see :class:`capsjax.routing.PassKernels`."""
    padded, config = steps.arrange(inputs, config)
    states = [steps.pad_state(s, config) for s in (Vs, dSs)]
    options = {"normalizer": normalizer, "constant": constant, "config": config}
    du, statistics = _backward_u(padded, *states, **options, interpret=interpret)
    dW, *dprior = _backward_W(padded, *states, statistics, **options, interpret=interpret)
    return unpad_gradients(PassInputs(du, dW, *dprior), inputs)


def _backward_u(inputs, Vs, dSs, *, normalizer, constant, config, interpret):
    """Returns du ``[K, I, B]``, and lse and delta of every pass, ``[passes, 2, I, B]``."""
    (K, I, B), (_, J, D, _) = inputs.u.shape, dSs.shape
    capsules, examples = config.capsules, config.examples
    specs = input_specs(inputs, config, lambda i, b: (i, b))
    states = (pl.BlockSpec((len(s), J, D, examples), lambda i, b: (0, 0, 0, b)) for s in (Vs, dSs))
    statistics = pl.BlockSpec((len(Vs), 2, capsules, examples), lambda i, b: (0, 0, i, b))
    return steps.call(
        functools.partial(_backward_u_kernel, normalizer=normalizer, constant=constant),
        "routing_pass_backward_u",
        grid=(I // capsules, B // examples),
        in_specs=(specs, *states),
        outputs=[((K, I, B), specs.u), ((len(Vs), 2, I, B), statistics)],
        num_warps=8,
        interpret=interpret,
    )(inputs, Vs, dSs)


def _backward_u_kernel(inputs_ref, Vs_ref, dSs_ref, du_ref, stats_ref, *, normalizer, constant):
    u, J = steps.read_u(inputs_ref), len(inputs_ref.W)
    total = [jnp.zeros(u[0].shape, jnp.float32) for _ in u]
    for t in range(len(dSs_ref)):
        V, dS = (functools.partial(steps.read, ref, t) for ref in (Vs_ref, dSs_ref))
        if t == len(Vs_ref):
            even = even_coupling(J, normalizer)
            add = functools.partial(_add_even, inputs_ref, dS, even)
        else:
            lse, delta = steps.statistics(inputs_ref, u, V, dS, normalizer)
            stats_ref[t, 0], stats_ref[t, 1] = lse, delta
            add = functools.partial(_add_routed, inputs_ref, u, V, dS, lse, delta, constant)
        total = jax.lax.fori_loop(0, J, add, total)
    for k, total_k in enumerate(total):
        du_ref[k] = total_k


def _add_even(inputs_ref, dS, even, j, total):
    return [s + even * dot(W, dS(j), (0, 0)) for s, W in zip(total, steps.read_W(inputs_ref, j))]


def _add_routed(inputs_ref, u, V, dS, lse, delta, constant, j, total):
    """Adds the part of output capsule j in du."""
    W = steps.read_W(inputs_ref, j)
    c = jnp.exp(steps.logits(inputs_ref, W, u, V, j) - lse)
    total = [s + c * dot(W_k, dS(j), (0, 0)) for s, W_k in zip(total, W)]
    if constant:
        return total
    db = c * (steps.dots(W, u, dS(j)) - delta)
    return [s + db * dot(W_k, V(j), (0, 0)) for s, W_k in zip(total, W)]


def _backward_W(inputs, Vs, dSs, statistics, *, normalizer, constant, config, interpret):
    """Returns dW ``[J, K, D, I]`` and, where there is a prior, its gradient ``[J, I]``."""
    (K, I, B), (_, J, D, _), capsules = inputs.u.shape, dSs.shape, config.capsules
    u = pl.BlockSpec((K, capsules, B), lambda i, j: (0, i, 0))
    W = pl.BlockSpec((None, K, D, capsules), lambda i, j: (j, 0, 0, i))
    prior = None if inputs.prior is None else pl.BlockSpec((None, capsules), lambda i, j: (j, i))
    states = (pl.BlockSpec((len(s), None, D, B), lambda i, j: (0, j, 0, 0)) for s in (Vs, dSs))
    even = even_coupling(J, normalizer)
    options = {"examples": config.examples, "even": even, "constant": constant}
    return steps.call(
        functools.partial(_backward_W_kernel, **options),
        "routing_pass_backward_W",
        grid=(I // capsules, J),
        in_specs=(
            PassInputs(u, W, prior),
            *states,
            pl.BlockSpec((len(Vs), 2, capsules, B), lambda i, j: (0, 0, i, 0)),
        ),
        outputs=[(inputs.W.shape, W)] + ([] if prior is None else [(inputs.prior.shape, prior)]),
        num_warps=4,
        interpret=interpret,
    )(inputs, Vs, dSs, statistics)


def _backward_W_kernel(
    inputs_ref, Vs_ref, dSs_ref, stats_ref, dW_ref, *dprior_ref, examples, even, constant
):
    """Works on blocks of one j, and of all examples."""
    u_ref, W_ref, prior_ref = inputs_ref
    W = [W_ref[k] for k in range(len(W_ref))]
    prior = None if prior_ref is None else prior_ref[...]

    def one(n, sums):
        batch = pl.ds(n * examples, examples)
        u = [u_ref[k, :, batch].astype(jnp.float32) for k in range(len(u_ref))]
        total, total_prior = sums
        for t in range(len(dSs_ref)):
            dS = dSs_ref[t, :, batch]
            if t == len(Vs_ref):
                c = jnp.full(u[0].shape, even, jnp.float32)
            else:
                V = Vs_ref[t, :, batch]
                logits = steps.with_prior(steps.dots(W, u, V), prior)
                c = jnp.exp(logits - stats_ref[t, 0, :, batch])
            pairs = [(dS, c)]
            if t < len(Vs_ref) and not constant:
                db = c * (steps.dots(W, u, dS) - stats_ref[t, 1, :, batch])
                pairs.append((V, db))
                total_prior += jnp.sum(db, axis=1)
            for y, weights in pairs:
                products = [(weights * u_k).astype(u_ref.dtype) for u_k in u]
                total = [s + dot(y, product, (1, 1)) for s, product in zip(total, products)]
        return total, total_prior

    zeros = [jnp.zeros(dW_ref.shape[1:], jnp.float32) for _ in W]
    start = zeros, jnp.zeros(dW_ref.shape[2:], jnp.float32)
    total, total_prior = jax.lax.fori_loop(0, u_ref.shape[2] // examples, one, start)
    for k, total_k in enumerate(total):
        dW_ref[k] = total_k
    if dprior_ref:
        dprior_ref[0][...] = total_prior
