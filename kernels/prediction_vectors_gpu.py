r"""Prediction vectors on NVIDIA GPUs: Pallas-Triton kernels for votes and their two gradients.

The votes :math:`\hat u_{j|i} = W_{ij} u_i` and their gradients are matrix products, three for
every input capsule i, over the R = J * D rows r = (j, d) of its votes:

    votes [R, B] = W [K, R]^T u [K, B]    du [K, B] = W [K, R] dvotes [R, B]
                   dW [K, R] = u [K, B] dvotes [R, B]^T

**Layout.** The votes, nearly all of the traffic, are ``[I, R, B]``; W and dW are ``[I, K, R]``
in here, transposed by XLA. So a warp reads and writes whole lines of memory.

**Grid.** ``(I, tiles of R, tiles of B)``: a program works on one input capsule and on

- votes: one tile, a sum of K outer products in float32, which takes less time than writing it
- du: one tile of examples, walking down the R rows
- dW: one tile of rows, walking along the B examples

The walks multiply tiles on tensor cores, rounded as ``jax.default_matmul_precision`` says (to
TF32 by default). Sizes in Triton are powers of two, in products 16 or more: beyond K, R and B,
loads are masked to zero and stores are dropped.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

ROWS, EXAMPLES = 32, 128  # of one tile; a small batch has fewer examples


def forward(u, W, *, interpret=False):
    """Votes ``[I, J, D, B]``, float32, of u ``[I, K, B]`` and W ``[J, D, I, K]``."""
    (J, D, I, K), B = W.shape, u.shape[-1]
    call = _call(_forward, "uW", "v", (I, K, J * D, B), ROWS, _examples(B), interpret)
    return call(u, _pack(W)).reshape(I, J, D, B)


def backward_u(W, dvotes, *, interpret=False):
    """Gradient by u ``[I, K, B]``, float32, of dvotes ``[I, J, D, B]``."""
    (J, D, I, K), B = W.shape, dvotes.shape[-1]
    rows = pl.cdiv(J * D, ROWS) * ROWS
    call = _call(_backward_u, "Wv", "u", (I, K, J * D, B), rows, _examples(B), interpret)
    return call(_pack(W), dvotes.reshape(I, J * D, B))


def backward_W(u, dvotes, *, interpret=False):
    """Gradient by W ``[J, D, I, K]``, float32, of dvotes ``[I, J, D, B]``."""
    (I, J, D, B), K = dvotes.shape, u.shape[1]
    examples = pl.cdiv(B, _examples(B)) * _examples(B)
    call = _call(_backward_W, "uv", "W", (I, K, J * D, B), ROWS, examples, interpret)
    return call(u, dvotes.reshape(I, J * D, B)).reshape(I, K, J, D).transpose(2, 3, 0, 1)


def _pack(W):  # [J, D, I, K] as [I, K, R]
    return W.transpose(2, 3, 0, 1).reshape(*W.shape[2:], -1)


def _examples(B):  # of one tile
    return max(16, min(pl.next_power_of_2(B), EXAMPLES))


def _call(kernel, inputs, output, sizes, rows, examples, interpret):
    """A pallas_call whose operands, u, W and v for votes, are named by their letters."""
    I, K, R, B = sizes
    pose = max(16, pl.next_power_of_2(K))
    specs = {
        "u": pl.BlockSpec((None, pose, examples), lambda i, r, b: (i, 0, b)),
        "W": pl.BlockSpec((None, pose, rows), lambda i, r, b: (i, 0, r)),
        "v": pl.BlockSpec((None, rows, examples), lambda i, r, b: (i, r, b)),
    }
    shape = {"u": (I, K, B), "W": (I, K, R), "v": (I, R, B)}[output]
    return pl.pallas_call(
        functools.partial(kernel, K=K, R=R, B=B),
        grid=(I, pl.cdiv(R, rows), pl.cdiv(B, examples)),
        in_specs=[specs[name] for name in inputs],
        out_specs=specs[output],
        out_shape=jax.ShapeDtypeStruct(shape, jnp.float32),
        compiler_params=pltriton.CompilerParams(num_warps=4, num_stages=3),
        interpret=interpret,
    )


def _within(bound, size, start=0):  # which of start, ..., start + size - 1 are below the bound
    return start + jnp.arange(size) < bound


def _load(ref, mask):
    return pltriton.load(ref, mask=mask, other=0.0).astype(jnp.float32)


def _forward(u, W, votes, *, K, R, B):
    examples = votes.shape[1]
    row = _within(R, ROWS, pl.program_id(1) * ROWS)
    example = _within(B, examples, pl.program_id(2) * examples)
    total = jnp.zeros(votes.shape, jnp.float32)
    for k in range(K):
        w, x = W.at[pl.ds(k, 1)], u.at[pl.ds(k, 1)]
        total += _load(w, row[None, :]).T * _load(x, example[None, :])
    pltriton.store(votes, total, mask=row[:, None] & example[None, :])


def _backward_u(W, dvotes, du, *, K, R, B):
    pose, examples = du.shape
    k, example = _within(K, pose), _within(B, examples, pl.program_id(2) * examples)

    def step(n, total):
        rows, row = pl.ds(n * ROWS, ROWS), _within(R, ROWS, n * ROWS)
        w = _load(W.at[:, rows], k[:, None] & row[None, :])
        dv = _load(dvotes.at[rows], row[:, None] & example[None, :])
        return total + jnp.dot(w, dv, preferred_element_type=jnp.float32)

    total = jax.lax.fori_loop(0, pl.cdiv(R, ROWS), step, jnp.zeros(du.shape, jnp.float32))
    pltriton.store(du, total, mask=k[:, None] & example[None, :])


def _backward_W(u, dvotes, dW, *, K, R, B):
    size = _examples(B)
    k, row = _within(K, dW.shape[0]), _within(R, ROWS, pl.program_id(1) * ROWS)

    def step(n, total):
        examples, example = pl.ds(n * size, size), _within(B, size, n * size)
        x = _load(u.at[:, examples], k[:, None] & example[None, :])
        dv = _load(dvotes.at[:, examples], row[:, None] & example[None, :])
        return total + jnp.dot(x, dv.T, preferred_element_type=jnp.float32)

    total = jax.lax.fori_loop(0, pl.cdiv(B, size), step, jnp.zeros(dW.shape, jnp.float32))
    pltriton.store(dW, total, mask=k[:, None] & row[None, :])
