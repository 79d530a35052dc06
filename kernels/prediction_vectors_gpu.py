r"""Prediction vectors on NVIDIA GPUs: Pallas-Triton kernels for votes and their two gradients.

The votes :math:`\hat u_{j|i} = W_{ij} u_i` and their gradients are matrix products, three for
every input capsule i, over the R = J * D rows r = (j, d) of its votes:

    votes [R, B] = W [K, R]^T u [K, B]    du [K, B] = W [K, R] dvotes [R, B]
                   dW [K, R] = u [K, B] dvotes [R, B]^T

**Layout.** The votes, nearly all of the traffic, are ``[I, R, B]``; W and dW are ``[I, K, R]``
in here, transposed by XLA. A warp therefore reads and writes whole lines of memory.

**Grid.** ``(I, tiles of R, tiles of B)``: a program works on one input capsule and on

- votes: one tile, a sum of K outer products in float32, which takes less time than writing it
- du: one tile of examples, walking down the R rows
- dW: one tile of rows, walking along the B examples

The walks multiply tiles on tensor cores, rounded as ``jax.default_matmul_precision`` says (to
TF32 by default). Sizes in Triton are powers of two, in products 16 or more: beyond K, R and B,
loads are masked to zero and stores are dropped.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """Sizes of a tile; a small batch has fewer examples."""

    rows: int = 32
    examples: int = 128

    def fit(self, B: int) -> "BlockConfig":
        """Returns the config for a batch of B examples."""
        examples = max(16, min(pl.next_power_of_2(B), self.examples))
        return dataclasses.replace(self, examples=examples)


DEFAULT = BlockConfig()
NAMES = {"v": "forward", "u": "backward_u", "W": "backward_W"}  # of kernels, by their output


def forward(u, W, *, config=DEFAULT, interpret=False):
    """Returns votes ``[I, J, D, B]``, float32, of u ``[I, K, B]`` and W ``[J, D, I, K]``."""
    (J, D, I, K), B = W.shape, u.shape[-1]
    tile = config.fit(B)
    call = _call(_forward_kernel, "uW", "v", (I, K, J * D, B), tile, tile, interpret)
    return call(u, _pack(W)).reshape(I, J, D, B)


def backward_u(W, dvotes, *, config=DEFAULT, interpret=False):
    """Returns the gradient by u ``[I, K, B]``, float32, of dvotes ``[I, J, D, B]``."""
    (J, D, I, K), B = W.shape, dvotes.shape[-1]
    tile = config.fit(B)
    block = dataclasses.replace(tile, rows=pl.cdiv(J * D, tile.rows) * tile.rows)
    call = _call(_backward_u_kernel, "Wv", "u", (I, K, J * D, B), tile, block, interpret)
    return call(_pack(W), dvotes.reshape(I, J * D, B))


def backward_W(u, dvotes, *, config=DEFAULT, interpret=False):
    """Returns the gradient by W ``[J, D, I, K]``, float32, of dvotes ``[I, J, D, B]``."""
    (I, J, D, B), K = dvotes.shape, u.shape[1]
    tile = config.fit(B)
    block = dataclasses.replace(tile, examples=pl.cdiv(B, tile.examples) * tile.examples)
    call = _call(_backward_W_kernel, "uv", "W", (I, K, J * D, B), tile, block, interpret)
    return call(u, dvotes.reshape(I, J * D, B)).reshape(I, K, J, D).transpose(2, 3, 0, 1)


def _pack(W):
    """Returns W ``[J, D, I, K]`` as ``[I, K, R]``."""
    return W.transpose(2, 3, 0, 1).reshape(*W.shape[2:], -1)


def _call(kernel, inputs, output, sizes, tile, block, interpret):
    """Returns a pallas_call whose operands, u, W and v for votes, are named by their letters.

    A program has a ``block`` of each operand, and the kernel works on a ``tile`` at a time.
    """
    (I, K, R, B), rows, examples = sizes, block.rows, block.examples
    pose = max(16, pl.next_power_of_2(K))
    specs = {
        "u": pl.BlockSpec((None, pose, examples), lambda i, r, b: (i, 0, b)),
        "W": pl.BlockSpec((None, pose, rows), lambda i, r, b: (i, 0, r)),
        "v": pl.BlockSpec((None, rows, examples), lambda i, r, b: (i, r, b)),
    }
    shape = {"u": (I, K, B), "W": (I, K, R), "v": (I, R, B)}[output]
    return pl.pallas_call(
        functools.partial(kernel, K=K, R=R, B=B, tile=tile),
        grid=(I, pl.cdiv(R, rows), pl.cdiv(B, examples)),
        in_specs=[specs[name] for name in inputs],
        out_specs=specs[output],
        out_shape=jax.ShapeDtypeStruct(shape, jnp.float32),
        compiler_params=pltriton.CompilerParams(num_warps=4, num_stages=3),
        interpret=interpret,
        name=f"prediction_vectors_{NAMES[output]}",
    )


def _within(bound, size, start=0):
    """Tells which of start, ..., start + size - 1 are below the bound."""
    return start + jnp.arange(size) < bound


def _load(ref, mask):
    return pltriton.load(ref, mask=mask, other=0.0).astype(jnp.float32)


def _forward_kernel(u_ref, W_ref, votes_ref, *, K, R, B, tile):
    row = _within(R, tile.rows, pl.program_id(1) * tile.rows)
    example = _within(B, tile.examples, pl.program_id(2) * tile.examples)
    total = jnp.zeros(votes_ref.shape, jnp.float32)
    for k in range(K):
        w_ref, x_ref = W_ref.at[pl.ds(k, 1)], u_ref.at[pl.ds(k, 1)]
        total += _load(w_ref, row[None, :]).T * _load(x_ref, example[None, :])
    pltriton.store(votes_ref, total, mask=row[:, None] & example[None, :])


def _backward_u_kernel(W_ref, dvotes_ref, du_ref, *, K, R, B, tile):
    pose, examples = du_ref.shape
    k, example = _within(K, pose), _within(B, examples, pl.program_id(2) * examples)

    def step(n, total):
        rows, row = pl.ds(n * tile.rows, tile.rows), _within(R, tile.rows, n * tile.rows)
        w = _load(W_ref.at[:, rows], k[:, None] & row[None, :])
        dv = _load(dvotes_ref.at[rows], row[:, None] & example[None, :])
        return total + jnp.dot(w, dv, preferred_element_type=jnp.float32)

    zero = jnp.zeros(du_ref.shape, jnp.float32)
    total = jax.lax.fori_loop(0, pl.cdiv(R, tile.rows), step, zero)
    pltriton.store(du_ref, total, mask=k[:, None] & example[None, :])


def _backward_W_kernel(u_ref, dvotes_ref, dW_ref, *, K, R, B, tile):
    size, (pose, rows) = tile.examples, dW_ref.shape
    k, row = _within(K, pose), _within(R, rows, pl.program_id(1) * rows)

    def step(n, total):
        examples, example = pl.ds(n * size, size), _within(B, size, n * size)
        x = _load(u_ref.at[:, examples], k[:, None] & example[None, :])
        dv = _load(dvotes_ref.at[:, examples], row[:, None] & example[None, :])
        return total + jnp.dot(x, dv.T, preferred_element_type=jnp.float32)

    total = jax.lax.fori_loop(0, pl.cdiv(B, size), step, jnp.zeros(dW_ref.shape, jnp.float32))
    pltriton.store(dW_ref, total, mask=k[:, None] & row[None, :])
