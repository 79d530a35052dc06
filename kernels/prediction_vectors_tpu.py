r"""Prediction vectors on TPU: Pallas kernels for the votes and for their two gradients.

The votes :math:`\hat u_{j|i} = W_{ij} u_i` and their gradients are matrix products, three for
every input capsule i, over the R = J * D rows r = (j, d) of its votes:

    votes [R, B] = W [K, R]^T u [K, B]    du [K, B] = W [K, R] dvotes [R, B]
                   dW [K, R] = u [K, B] dvotes [R, B]^T

**Layout.** The last axis runs along the 128 lanes of a tile, the one before it along its 8
sublanes. The votes, nearly all of the traffic, have the batch in lanes and r in sublanes:
``[I, R, B]``, in memory the same as ``[I, J, D, B]`` if D is a multiple of 8. W and dW are
``[I, K, R]`` in here: with K = 8 last, a block would be padded to 128 lanes, 16 times its size.
The transposition is XLA's; W is small beside the votes.

**Grid.** ``(blocks of input capsules, blocks of 128 examples)``. A block of W stays in VMEM
while the examples go by; dW is accumulated there over the examples, the inner axis of the
grid, which therefore runs in order. Nothing is padded: the last block may reach beyond I
or B, what it reads there is arbitrary and what it writes there is dropped. Capsules and
examples do not mix, except in dW, whose kernel sets to zero what lies beyond B.

A block holds all of K and R, and VMEM bounds the two: R up to 6400 for K = 8. A batch below
128 takes the memory and the time of 128, because its lanes are padded.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128
BLOCK_BYTES = 4 * 2**20  # of all operands in float32; twice that, two buffers, is in VMEM


def forward(u, W, *, interpret=False):
    """Votes ``[I, J, D, B]``, float32, of u ``[I, K, B]`` and W ``[J, D, I, K]``."""
    (J, D, I, K), B = W.shape, u.shape[-1]
    call = _call(_forward, "uW", "v", I, K, J * D, B, interpret)
    return call(_supported(u), _supported(_pack(W))).reshape(I, J, D, B)


def backward_u(W, dvotes, *, interpret=False):
    """Gradient by u ``[I, K, B]``, float32, of dvotes ``[I, J, D, B]``."""
    (J, D, I, K), B = W.shape, dvotes.shape[-1]
    call = _call(_backward_u, "Wv", "u", I, K, J * D, B, interpret)
    return call(_supported(_pack(W)), dvotes.reshape(I, J * D, B))


def backward_W(u, dvotes, *, interpret=False):
    """Gradient by W ``[J, D, I, K]``, float32, of dvotes ``[I, J, D, B]``."""
    (I, J, D, B), K = dvotes.shape, u.shape[1]
    kernel = functools.partial(_backward_W, B=B)
    call = _call(kernel, "uv", "W", I, K, J * D, B, interpret)
    dW = call(_supported(u), dvotes.reshape(I, J * D, B))
    return dW.reshape(I, K, J, D).transpose(2, 3, 0, 1)


def _pack(W):  # [J, D, I, K] as [I, K, R]
    return W.transpose(2, 3, 0, 1).reshape(*W.shape[2:], -1)


def _supported(x):  # Mosaic does not load float16
    return x.astype(jnp.float32) if x.dtype == jnp.float16 else x


def _call(kernel, inputs, output, I, K, R, B, interpret):
    """A pallas_call whose operands, u, W and v for votes, are named by their letters."""
    lanes = min(LANES, B)
    capsules = max(1, min(I, BLOCK_BYTES // (4 * (LANES * (K + R) + K * R))))
    specs = {
        "u": pl.BlockSpec((capsules, K, lanes), lambda i, b: (i, 0, b)),
        "W": pl.BlockSpec((capsules, K, R), lambda i, b: (i, 0, 0)),
        "v": pl.BlockSpec((capsules, R, lanes), lambda i, b: (i, 0, b)),
    }
    shape = {"u": (I, K, B), "W": (I, K, R), "v": (I, R, B)}[output]
    examples = "arbitrary" if output == "W" else "parallel"
    return pl.pallas_call(
        kernel,
        grid=(pl.cdiv(I, capsules), pl.cdiv(B, lanes)),
        in_specs=[specs[name] for name in inputs],
        out_specs=specs[output],
        out_shape=jax.ShapeDtypeStruct(shape, jnp.float32),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", examples)),
        interpret=interpret,
    )


def _dot(equation, x, y):
    # Widening is exact; the matrix unit rounds according to jax.default_matmul_precision,
    # which for half-precision operands Mosaic lets be nothing but the default.
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)


def _forward(u, W, votes):
    votes[...] = _dot("ikr,ikb->irb", W[...], u[...])


def _backward_u(W, dvotes, du):
    du[...] = _dot("ikr,irb->ikb", W[...], dvotes[...])


def _backward_W(u, dvotes, dW, *, B):
    block, lanes = pl.program_id(1), u.shape[-1]

    @pl.when(block == 0)
    def _():
        dW[...] = jnp.zeros_like(dW)

    example = block * lanes + jax.lax.broadcasted_iota(jnp.int32, (1, 1, lanes), 2)
    u, dvotes = (jnp.where(example < B, x[...].astype(jnp.float32), 0.0) for x in (u, dvotes))
    dW[...] += _dot("ikb,irb->ikr", u, dvotes)
