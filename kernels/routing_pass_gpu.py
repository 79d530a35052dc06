"""The sweeps of routing as Pallas kernels for NVIDIA GPUs (Triton).

Mathematics and letters: :mod:`capsjax.routing.agreement`. Votes do not exist; everything is
products of small matrices, with V [J, D, B] as there and W turned to [J, K, D, I]:

    W_jk [D, ib]    u_k, c_j, db_j [ib, bb]    V_j, S_j [D, bb]

A program owns ``BLOCK`` input capsules and ``EXAMPLES`` examples. It holds u in registers and
walks over the output capsules j, so that J is free, twice: the coupling coefficients of a
capsule need the logits of all j, which are not kept but computed again. From the first walk
remain, for each capsule and example,

    lse = log sum_j exp(b_j)     delta = sum_j c_j dc_j

with which c_j = exp(b_j - lse) and db_j = c_j (dc_j - delta) follow for each j alone. Sums over
capsules (S, dV) leave a program as partial sums, added up outside: the order of the additions
is always the same, as it would not be with atomic ones. dW, a sum over the batch, has a kernel
of its own, in which a program owns one j and walks over the examples, taking lse and delta from
memory.

I and B are padded with zeros to whole blocks, D to a power of two of at least 16, the smallest
that tensor cores multiply.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from capsjax.routing import PassInputs
from capsjax.routing.agreement import even_coupling
from kernels.blocks import check_dtype, cut, dot, pad

# Together 144 programs at B = 128, I = 1152: an H200 has 132 multiprocessors.
BLOCK = 32
EXAMPLES = 32
SMALLEST = 16  # side of a matrix in Triton's products


def forward(inputs: PassInputs, V, normalizer: str, *, interpret=False):
    """S ``[J, D, B]``; see :class:`capsjax.routing.PassKernels`."""
    return _reduce(inputs, (V,), normalizer, interpret)


def backward_state(inputs: PassInputs, V, dS, normalizer: str, dinputs: None, *, interpret=False):
    """dV ``[J, D, B]`` alone; see :class:`capsjax.routing.PassKernels`."""
    return _reduce(inputs, (V, dS), normalizer, interpret), None


def _reduce(inputs, states, normalizer, interpret):
    """S if the states are (V), dV if they are (V, dS)."""
    x, examples = _arrange(inputs)
    shape = states[0].shape
    states = tuple(_pad_state(s, examples) for s in states)
    J, D, B = states[0].shape
    blocks = x.u.shape[1] // BLOCK
    state = pl.BlockSpec((J, D, examples), lambda i, b: (0, 0, b))
    part = pl.BlockSpec((None, J, D, examples), lambda i, b: (i, 0, 0, b))
    (parts,) = _call(
        functools.partial(_reduce_kernel, normalizer=normalizer),
        grid=(blocks, B // examples),
        in_specs=(_specs(x, examples), tuple(state for _ in states)),
        outputs=[((blocks, J, D, B), part)],
        num_warps=4,
        interpret=interpret,
    )(x, states)
    return cut(jnp.sum(parts, axis=0), shape)


def _reduce_kernel(x, states, total, *, normalizer):
    V, *dS = (functools.partial(_read, s) for s in states)
    dS = dS[0] if dS else None
    u = [x.u[k].astype(jnp.float32) for k in range(len(x.u))]
    lse, delta = _statistics(x, u, V, dS, normalizer)

    def one(j, _):
        W = _matrices(x, j)
        weights = jnp.exp(_logits(x, W, u, V, j) - lse)
        if dS is not None:
            weights *= _dots(W, u, dS(j)) - delta
        products = [(weights * u_k).astype(x.u.dtype) for u_k in u]
        total[j] = sum(dot(W_k, product, (1, 0)) for W_k, product in zip(W, products))

    jax.lax.fori_loop(0, len(x.W), one, None)


def backward_inputs(inputs, Vs, dSs, normalizer, constant, *, interpret=False) -> PassInputs:
    """Gradients by the inputs; see :class:`capsjax.routing.PassKernels`."""
    x, examples = _arrange(inputs)
    Vs, dSs = (_pad_state(s, examples) for s in (Vs, dSs))
    (K, I, B), (_, J, D, _) = x.u.shape, dSs.shape
    capsules = _specs(x, examples)
    statistics = pl.BlockSpec((len(Vs), 2, BLOCK, examples), lambda i, b: (0, 0, i, b))
    du, lse_delta = _call(
        functools.partial(_du_kernel, normalizer=normalizer, constant=constant),
        grid=(I // BLOCK, B // examples),
        in_specs=(
            capsules,
            *(pl.BlockSpec((len(s), J, D, examples), lambda i, b: (0, 0, 0, b)) for s in (Vs, dSs)),
        ),
        outputs=[((K, I, B), capsules.u), ((len(Vs), 2, I, B), statistics)],
        num_warps=8,
        interpret=interpret,
    )(x, Vs, dSs)

    W = pl.BlockSpec((None, K, D, BLOCK), lambda i, j: (j, 0, 0, i))
    prior = None if x.prior is None else pl.BlockSpec((None, BLOCK), lambda i, j: (j, i))
    dW, *dprior = _call(
        functools.partial(
            _dW_kernel, examples=examples, even=even_coupling(J, normalizer), constant=constant
        ),
        grid=(I // BLOCK, J),
        in_specs=(
            PassInputs(pl.BlockSpec((K, BLOCK, B), lambda i, j: (0, i, 0)), W, prior),
            *(pl.BlockSpec((len(s), None, D, B), lambda i, j: (0, j, 0, 0)) for s in (Vs, dSs)),
            pl.BlockSpec((len(Vs), 2, BLOCK, B), lambda i, j: (0, 0, i, 0)),
        ),
        outputs=[(x.W.shape, W)] + ([] if prior is None else [(x.prior.shape, prior)]),
        num_warps=4,
        interpret=interpret,
    )(x, Vs, dSs, lse_delta)
    gradients = PassInputs(du, dW.transpose(3, 1, 0, 2), *dprior)
    return jax.tree.map(lambda g, x: cut(g, x.shape).astype(x.dtype), gradients, inputs)


def _du_kernel(x, Vs, dSs, du, statistics, *, normalizer, constant):
    u = [x.u[k].astype(jnp.float32) for k in range(len(x.u))]
    total = [jnp.zeros(u[0].shape, jnp.float32) for _ in u]
    for t in range(len(dSs)):
        V, dS = functools.partial(_read, Vs, t), functools.partial(_read, dSs, t)
        if t == len(Vs):
            even = even_coupling(len(x.W), normalizer)
            add = functools.partial(_add_even, x, dS, even)
        else:
            lse, delta = _statistics(x, u, V, dS, normalizer)
            statistics[t, 0], statistics[t, 1] = lse, delta
            add = functools.partial(_add_routed, x, u, V, dS, lse, delta, constant)
        total = jax.lax.fori_loop(0, len(x.W), add, total)
    for k, total_k in enumerate(total):
        du[k] = total_k


def _add_even(x, dS, even, j, total):
    return [s + even * dot(W, dS(j), (0, 0)) for s, W in zip(total, _matrices(x, j))]


def _add_routed(x, u, V, dS, lse, delta, constant, j, total):
    """The part of output capsule j in du."""
    W = _matrices(x, j)
    c = jnp.exp(_logits(x, W, u, V, j) - lse)
    total = [s + c * dot(W_k, dS(j), (0, 0)) for s, W_k in zip(total, W)]
    if constant:
        return total
    db = c * (_dots(W, u, dS(j)) - delta)
    return [s + db * dot(W_k, V(j), (0, 0)) for s, W_k in zip(total, W)]


def _dW_kernel(x, Vs, dSs, statistics, dW, *dprior, examples, even, constant):
    """Blocks of one j, and of all examples."""
    W = [x.W[k] for k in range(len(x.W))]
    prior = None if x.prior is None else x.prior[...]

    def one(n, sums):
        batch = pl.ds(n * examples, examples)
        u = [x.u[k, :, batch].astype(jnp.float32) for k in range(len(x.u))]
        total, total_prior = sums
        for t in range(len(dSs)):
            dS = dSs[t, :, batch]
            if t == len(Vs):
                c = jnp.full(u[0].shape, even, jnp.float32)
            else:
                V = Vs[t, :, batch]
                logits = _with_prior(_dots(W, u, V), prior)
                c = jnp.exp(logits - statistics[t, 0, :, batch])
            pairs = [(dS, c)]
            if t < len(Vs) and not constant:
                db = c * (_dots(W, u, dS) - statistics[t, 1, :, batch])
                pairs.append((V, db))
                total_prior += jnp.sum(db, axis=1)
            for y, weights in pairs:
                products = [(weights * u_k).astype(x.u.dtype) for u_k in u]
                total = [s + dot(y, product, (1, 1)) for s, product in zip(total, products)]
        return total, total_prior

    zeros = [jnp.zeros(dW.shape[1:], jnp.float32) for _ in range(len(dW))]
    start = zeros, jnp.zeros(dW.shape[2:], jnp.float32)
    total, total_prior = jax.lax.fori_loop(0, x.u.shape[2] // examples, one, start)
    for k, total_k in enumerate(total):
        dW[k] = total_k
    if dprior:
        dprior[0][...] = total_prior


# Steps of the kernels. u is a list of K arrays [ib, bb], W one of K arrays [D, ib], in registers;
# V and dS are functions that read the array [D, bb] of one j.


def _statistics(x, u, V, dS, normalizer):
    """lse and delta ``[ib, bb]``, in one walk over j: sums are rescaled when a logit is larger
    than all before. delta is zero without dS."""
    zero = jnp.zeros(u[0].shape, jnp.float32)
    # The parent of the leaky normaliser that takes what belongs to none has logit zero.
    leaky = normalizer == "leaky"
    start = (zero, zero + 1, zero) if leaky else (zero - jnp.inf, zero, zero)

    def one(j, sums):
        largest, total, weighted = sums
        W = _matrices(x, j)
        logits = _logits(x, W, u, V, j)
        larger = jnp.maximum(largest, logits)
        rescale, e = jnp.exp(largest - larger), jnp.exp(logits - larger)
        if dS is not None:
            weighted = weighted * rescale + e * _dots(W, u, dS(j))
        return larger, total * rescale + e, weighted

    largest, total, weighted = jax.lax.fori_loop(0, len(x.W), one, start)
    return largest + jnp.log(total), weighted / total


def _logits(x, W, u, V, j):
    return _with_prior(_dots(W, u, V(j)), None if x.prior is None else x.prior[j])


def _with_prior(logits, prior):
    if prior is None:
        return logits
    return logits + jnp.broadcast_to(prior.astype(jnp.float32)[:, None], logits.shape)


def _dots(W, u, y):
    """u_i . W_ij^T y_j, ``[ib, bb]``, of y_j ``[D, bb]``."""
    return sum(u_k * dot(W_k, y, (0, 0)) for u_k, W_k in zip(u, W))


def _matrices(x, j):
    """W_j, K arrays ``[D, ib]``."""
    return [x.W[j, k] for k in range(len(x.u))]


def _read(ref, *index):
    return ref[index]


# Arrays and blocks


def _call(kernel, *, grid, in_specs, outputs, num_warps, interpret):
    """A pallas_call with outputs ``(shape, block)`` in float32."""
    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=in_specs,
        out_specs=[spec for _, spec in outputs],
        out_shape=[jax.ShapeDtypeStruct(shape, jnp.float32) for shape, _ in outputs],
        compiler_params=pltriton.CompilerParams(num_warps=num_warps, num_stages=2),
        interpret=interpret,
    )


def _arrange(inputs):
    """Inputs padded to whole blocks, and how many examples a block has."""
    check_dtype("u", inputs.u)
    B = inputs.u.shape[2]
    examples = min(EXAMPLES, max(SMALLEST, pl.next_power_of_2(B)))
    u = pad(inputs.u, {1: BLOCK, 2: examples})
    W = pad(inputs.W.transpose(2, 1, 3, 0), {2: _pose(inputs.W.shape[3]), 3: BLOCK})
    prior = None if inputs.prior is None else pad(inputs.prior, {1: BLOCK})
    return PassInputs(u, W, prior), examples


def _pose(D):
    return max(SMALLEST, pl.next_power_of_2(D))


def _pad_state(s, examples):
    """V, dS or a stack of them, ``[..., D, B]``."""
    return pad(s, {s.ndim - 2: _pose(s.shape[-2]), s.ndim - 1: examples})


def _specs(x, examples):
    """Blocks of the inputs for place (i, b) in the grid."""
    (K, _, _), (J, _, D, _) = x.u.shape, x.W.shape
    u = pl.BlockSpec((K, BLOCK, examples), lambda i, b: (0, i, b))
    W = pl.BlockSpec((J, K, D, BLOCK), lambda i, b: (0, 0, 0, i))
    prior = pl.BlockSpec((J, BLOCK), lambda i, b: (0, i))
    return PassInputs(u, W, None if x.prior is None else prior)
