r"""Prediction vectors on TPU: Pallas kernels for the votes and for their two gradients.

The votes :math:`\hat u_{j|i} = W_{ij} u_i` and their gradients are matrix products, three for
every input capsule i, over the R = J * D rows r = (j, d) of its votes:

    votes [R, B] = W [K, R]^T u [K, B]    du [K, B] = W [K, R] dvotes [R, B]
                   dW [K, R] = u [K, B] dvotes [R, B]^T

**Layout.** The last axis runs along the 128 lanes of a tile, the one before it along its 8
sublanes. The votes, nearly all of the traffic, have the batch in lanes and r in sublanes:
``[I, R, B]``, in memory the same as ``[I, J, D, B]`` if D is a multiple of 8. W and dW are
``[I, K, R]`` in here: with K = 8 last, a block would be padded to 128 lanes, 16 times its size.
XLA does the transposition; W is small compared with the votes.

**Grid.** ``(blocks of input capsules, blocks of 128 examples)``. A block of W stays in VMEM
for all examples; dW is accumulated there over the examples, the inner axis of the grid, which
therefore runs in order. Nothing is padded: the last block may reach beyond I
or B, what it reads there is arbitrary and what it writes there is dropped. Capsules and
examples do not mix, except in dW, whose kernel sets to zero what lies beyond B.

A block holds all of K and R, and VMEM bounds the two: R up to 6400 for K = 8. A batch below
128 takes the memory and the time of 128, because its lanes are padded.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """Sizes of a block."""

    examples: int = 128  # the lanes of a tile
    # Of all operands in float32; twice that, two buffers, is in VMEM.
    operand_bytes: int = 4 * 2**20


DEFAULT = BlockConfig()
NAMES = {"v": "forward", "u": "backward_u", "W": "backward_W"}  # of kernels, by their output


def forward(u, W, *, config=DEFAULT, interpret=False):
    """Returns votes ``[I, J, D, B]``, float32, of u ``[I, K, B]`` and W ``[J, D, I, K]``."""
    (J, D, I, K), B = W.shape, u.shape[-1]
    call = _call(_forward_kernel, "uW", "v", (I, K, J * D, B), config, interpret)
    return call(_supported(u), _supported(_pack(W))).reshape(I, J, D, B)


def backward_u(W, dvotes, *, config=DEFAULT, interpret=False):
    """Returns the gradient by u ``[I, K, B]``, float32, of dvotes ``[I, J, D, B]``."""
    (J, D, I, K), B = W.shape, dvotes.shape[-1]
    call = _call(_backward_u_kernel, "Wv", "u", (I, K, J * D, B), config, interpret)
    return call(_supported(_pack(W)), dvotes.reshape(I, J * D, B))


def backward_W(u, dvotes, *, config=DEFAULT, interpret=False):
    """Returns the gradient by W ``[J, D, I, K]``, float32, of dvotes ``[I, J, D, B]``."""
    (I, J, D, B), K = dvotes.shape, u.shape[1]
    kernel = functools.partial(_backward_W_kernel, B=B)
    call = _call(kernel, "uv", "W", (I, K, J * D, B), config, interpret)
    dW = call(_supported(u), dvotes.reshape(I, J * D, B))
    return dW.reshape(I, K, J, D).transpose(2, 3, 0, 1)


def _pack(W):
    """Returns W ``[J, D, I, K]`` as ``[I, K, R]``."""
    return W.transpose(2, 3, 0, 1).reshape(*W.shape[2:], -1)


def _supported(x):
    """Widens float16, which Mosaic does not load."""
    return x.astype(jnp.float32) if x.dtype == jnp.float16 else x


def _call(kernel, inputs, output, sizes, config, interpret):
    """Returns a pallas_call whose operands, u, W and v for votes, are named by their letters."""
    I, K, R, B = sizes
    lanes = min(config.examples, B)
    capsule_bytes = 4 * (config.examples * (K + R) + K * R)
    capsules = max(1, min(I, config.operand_bytes // capsule_bytes))
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
        name=f"prediction_vectors_{NAMES[output]}",
    )


def _dot(equation, x, y):
    # Widening is exact; the matrix unit rounds according to jax.default_matmul_precision,
    # for which Mosaic allows only the default if operands are of half precision.
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)


def _forward_kernel(u_ref, W_ref, votes_ref):
    votes_ref[...] = _dot("ikr,ikb->irb", W_ref[...], u_ref[...])


def _backward_u_kernel(W_ref, dvotes_ref, du_ref):
    du_ref[...] = _dot("ikr,irb->ikb", W_ref[...], dvotes_ref[...])


def _backward_W_kernel(u_ref, dvotes_ref, dW_ref, *, B):
    block, lanes = pl.program_id(1), u_ref.shape[-1]

    @pl.when(block == 0)
    def _():
        dW_ref[...] = jnp.zeros_like(dW_ref)

    example = block * lanes + jax.lax.broadcasted_iota(jnp.int32, (1, 1, lanes), 2)
    u, dvotes = (
        jnp.where(example < B, ref[...].astype(jnp.float32), 0.0) for ref in (u_ref, dvotes_ref)
    )
    dW_ref[...] += _dot("ikb,irb->ikr", u, dvotes)
