"""The sweeps of routing as Pallas kernels for TPU (Mosaic).

Mathematics and letters: :mod:`capsjax.routing.agreement`. Votes do not exist; everything is
products of matrices with the batch in the 128 lanes:

    u [K, I, B]         blocks [K, ib, 128]      ib input capsules
    W [J, K, D, I]      blocks [J, K, D, ib]     all output capsules; turned from [I, K, J, D]
    prior [J, I, 1]     blocks [J, ib, 1]
    V, S [J, D, B]      blocks [J, D, 128]

One step of the grid holds a block of capsules and 128 examples in VMEM. A first loop over j
fills an array [J, ib, 128] with the logits: W_jk^T V_j is a product on the matrix unit,
multiplied elementwise by u_k and summed over k. The normaliser works on the J arrays
elementwise. A second loop multiplies by W_jk once more.

``forward`` and ``backward_state`` walk over the capsules in the inner axis of the grid and add
to an output block that meanwhile stays in VMEM. ``backward_inputs`` walks over the batch in the
inner axis, because dW is a sum over the batch. I and B are padded with zeros to multiples of a
block; they are the lanes of W and of everything else.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from capsjax.routing import PassInputs, normalize
from capsjax.routing.agreement import even_coupling
from kernels.blocks import Unsupported, check_dtype, cut, dot, pad

LANES = 128
# Input capsules of a block.
BLOCK = LANES
# What a kernel may take of VMEM unless it says otherwise, and the most that it may ask for.
VMEM_BYTES, MOST_VMEM_BYTES = 16 * 2**20, 64 * 2**20


def forward(inputs: PassInputs, V, normalizer: str, *, interpret=False):
    """S ``[J, D, B]``; see :class:`capsjax.routing.PassKernels`."""
    return _reduce(inputs, (V,), normalizer, interpret)


def backward_state(inputs: PassInputs, V, dS, normalizer: str, dinputs: None, *, interpret=False):
    """dV ``[J, D, B]`` alone; see :class:`capsjax.routing.PassKernels`."""
    return _reduce(inputs, (V, dS), normalizer, interpret), None


def _reduce(inputs, states, normalizer, interpret):
    """S if the states are (V), dV if they are (V, dS)."""
    x = _arrange(inputs)
    J, D, B = states[0].shape
    states = tuple(pad(s, {2: LANES}) for s in states)
    state = pl.BlockSpec((J, D, LANES), lambda b, i: (0, 0, b))
    total = pl.pallas_call(
        functools.partial(_reduce_kernel, normalizer=normalizer),
        grid=(x.u.shape[2] // LANES, x.u.shape[1] // BLOCK),
        in_specs=(_specs(x, lambda b, i: (i, b)), tuple(state for _ in states)),
        out_specs=state,
        out_shape=jax.ShapeDtypeStruct(states[0].shape, jnp.float32),
        scratch_shapes=[pltpu.VMEM((J, BLOCK, LANES), jnp.float32) for _ in states],
        compiler_params=_parameters(x, len(states)),
        cost_estimate=_cost(x, 2 * len(states), [*states, states[0]]),
        interpret=interpret,
    )(x, states)
    return cut(total, (J, D, B))


def _reduce_kernel(x, states, total, c, *db, normalizer):
    @pl.when(pl.program_id(1) == 0)
    def _():
        total[...] = jnp.zeros(total.shape, total.dtype)

    _set_coupling(c, x, states[0], normalizer)
    if db:
        _set_logit_gradient(db[0], c, x, states[1])
    weights = db[0] if db else c

    @_for_each(len(total))
    def _(j):
        for k in range(len(x.u)):
            total[j] += dot(x.W[j, k], _times(weights[j], x.u[k]), (1, 0))


def backward_inputs(inputs, Vs, dSs, normalizer, constant, *, interpret=False) -> PassInputs:
    """Gradients by the inputs; see :class:`capsjax.routing.PassKernels`."""
    x = _arrange(inputs)
    _, J, D, _ = dSs.shape
    states = [pad(s, {3: LANES}) for s in (Vs, dSs)]
    state_specs = [pl.BlockSpec((len(s), J, D, LANES), lambda i, b: (0, 0, 0, b)) for s in states]
    specs = _specs(x, lambda i, b: (i, b))
    (gradients,) = pl.pallas_call(
        functools.partial(_inputs_kernel, normalizer=normalizer, constant=constant),
        grid=(x.u.shape[1] // BLOCK, x.u.shape[2] // LANES),
        in_specs=(specs, *state_specs),
        out_specs=[specs],
        out_shape=[jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.float32), x)],
        scratch_shapes=[pltpu.VMEM((J, BLOCK, LANES), jnp.float32) for _ in ("c", "db")],
        compiler_params=_parameters(x, len(Vs) + len(dSs), gradients=True),
        cost_estimate=_cost(x, 4 * (len(Vs) + len(dSs)), states, gradients=True),
        interpret=interpret,
    )(x, *states)
    gradients = gradients._replace(W=gradients.W.transpose(3, 1, 0, 2))
    if gradients.prior is not None:
        gradients = gradients._replace(prior=gradients.prior[:, :, 0])
    return jax.tree.map(lambda g, x: cut(g, x.shape).astype(x.dtype), gradients, inputs)


def _inputs_kernel(x, Vs, dSs, dx, c, db, *, normalizer, constant):
    @pl.when(pl.program_id(1) == 0)
    def _():
        dx.W[...] = jnp.zeros(dx.W.shape, dx.W.dtype)
        if dx.prior is not None:
            dx.prior[...] = jnp.zeros(dx.prior.shape, dx.prior.dtype)

    dx.u[...] = jnp.zeros(dx.u.shape, dx.u.dtype)
    for t in range(len(dSs)):
        if even := t == len(Vs):
            c[...] = jnp.full(c.shape, even_coupling(len(c), normalizer), c.dtype)
        else:
            _set_coupling(c, x, Vs.at[t], normalizer)
        _add_products(dx, x, c, dSs.at[t])
        if even or constant:
            continue
        _set_logit_gradient(db, c, x, dSs.at[t])
        _add_products(dx, x, db, Vs.at[t])
        if dx.prior is not None:
            dx.prior[...] += jnp.sum(db[...], axis=2, keepdims=True)


# Steps of the kernels. They work on references to blocks; ``weights`` is c or db.


def _set_coupling(c, x, V, normalizer):
    _set_dots(c, x, V)
    logits = c[...]
    if x.prior is not None:
        logits += jnp.broadcast_to(x.prior[...].astype(logits.dtype), logits.shape)
    c[...] = normalize(logits, normalizer, axis=0)


def _set_logit_gradient(db, c, x, dS):
    _set_dots(db, x, dS)
    mean = jnp.sum(c[...] * db[...], axis=0, keepdims=True)
    db[...] = c[...] * (db[...] - jnp.broadcast_to(mean, db.shape))


def _set_dots(out, x, y):
    """out_ij = u_i . W_ij^T y_j."""

    @_for_each(len(out))
    def _(j):
        total = jnp.zeros(out.shape[1:], out.dtype)
        for k in range(len(x.u)):
            total += x.u[k].astype(out.dtype) * dot(x.W[j, k], y[j], (0, 0))
        out[j] = total


def _add_products(dx, x, weights, y):
    """du_i += sum_j w_ij W_ij^T y_j, and dW_ij += y_j (w_ij u_i)^T."""

    @_for_each(len(weights))
    def _(j):
        for k in range(len(x.u)):
            dx.u[k] += weights[j] * dot(x.W[j, k], y[j], (0, 0))
            dx.W[j, k] += dot(y[j], _times(weights[j], x.u[k]), (1, 1))


def _times(weights, u):
    """Capsules times their weights, in the type of the capsules."""
    return (weights * u.astype(weights.dtype)).astype(u.dtype)


def _for_each(count):
    """Decorator: run the function for j = 0 .. count-1."""
    return lambda body: jax.lax.fori_loop(0, count, lambda j, _: body(j), None)


# Arrays and blocks


def _arrange(inputs):
    """Padded to whole blocks; the prior ``[J, I, 1]``."""
    check_dtype("u", inputs.u)
    u = pad(inputs.u, {1: BLOCK, 2: LANES})
    W = pad(inputs.W.transpose(2, 1, 3, 0), {3: BLOCK})
    if u.dtype == jnp.float16:  # which Mosaic can't load
        u, W = u.astype(jnp.float32), W.astype(jnp.float32)
    prior = None if inputs.prior is None else pad(inputs.prior, {1: BLOCK})[:, :, None]
    return PassInputs(u, W, prior)


def _specs(x, position):
    """Blocks of the inputs; ``position`` gives (i, b) from the place in the grid."""
    (K, _, _), (J, _, D, _) = x.u.shape, x.W.shape
    u = pl.BlockSpec((K, BLOCK, LANES), lambda *at: (0, *position(*at)))
    W = pl.BlockSpec((J, K, D, BLOCK), lambda *at: (0, 0, 0, position(*at)[0]))
    prior = pl.BlockSpec((J, BLOCK, 1), lambda *at: (0, position(*at)[0], 0))
    return PassInputs(u, W, None if x.prior is None else prior)


def _parameters(x, states, gradients=False):
    """How to compile, with the VMEM that blocks (twice, to fetch the next) and scratch take.

    Raises:
      Unsupported: it is more than there is.
    """
    (K, _, _), (J, _, D, _) = x.u.shape, x.W.shape
    pairs = ((K * BLOCK * LANES, x.u.dtype), (J * K * max(D, 8) * BLOCK, x.W.dtype))
    blocks = sum(size * (dtype.itemsize + 4 * gradients) for size, dtype in pairs)
    blocks += 4 * (states + 1) * J * max(D, 8) * LANES
    blocks += 4 * 2 * J * BLOCK * LANES * (x.prior is not None)
    needed = 2 * blocks + 4 * J * BLOCK * LANES * 2 + 2**21
    if needed > MOST_VMEM_BYTES:
        raise Unsupported(
            f"W [J, K, D, I] = {x.W.shape}: the TPU kernel holds all J output capsules in "
            f"{MOST_VMEM_BYTES >> 20} MiB, these need {needed >> 20}; use stream"
        )
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=max(needed, VMEM_BYTES)
    )


def _cost(x, products, states, gradients=False):
    """For XLA, which can't look into a kernel: bytes as the grid moves them."""
    blocks = x.u.shape[2] // LANES
    moved = x.u.size * (x.u.dtype.itemsize + 4 * gradients)
    # backward_inputs keeps a block of W, and of dW, while the batch goes by.
    moved += x.W.size * (x.W.dtype.itemsize + 4 if gradients else blocks * x.W.dtype.itemsize)
    moved += sum(s.size * 4 for s in states)
    return pl.CostEstimate(
        flops=2 * products * x.W.size * x.u.shape[2],
        bytes_accessed=moved,
        transcendentals=x.W.shape[0] * x.u.shape[1] * x.u.shape[2],
    )
