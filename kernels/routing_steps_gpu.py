"""Steps that the kernels of :mod:`kernels.routing_pass_gpu` share, and how they are called."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from kernels.blocks import dot, pad
from kernels.routing_blocks import pad_inputs

SMALLEST = 16  # side of a matrix in Triton's products


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """Sizes of a block; a small batch has fewer examples.

    The default makes 144 programs at B = 128, I = 1152: an H200 has 132 multiprocessors.
    """

    capsules: int = 32
    examples: int = 32


# u is a list of K arrays [ib, bb], W one of K arrays [D, ib], in registers;
# V and dS are functions that read the array [D, bb] of one j.


def statistics(inputs_ref, u, V, dS, normalizer):
    """Returns lse and delta ``[ib, bb]``; delta is zero without dS.

    One walk over j suffices: sums are rescaled when a logit is larger than all before.
    """
    zero = jnp.zeros(u[0].shape, jnp.float32)
    # The additional output capsule of the leaky normalizer has logit zero.
    leaky = normalizer == "leaky"
    start = (zero, zero + 1, zero) if leaky else (zero - jnp.inf, zero, zero)

    def one(j, sums):
        largest, total, weighted = sums
        W = read_W(inputs_ref, j)
        b = logits(inputs_ref, W, u, V, j)
        larger = jnp.maximum(largest, b)
        rescale, e = jnp.exp(largest - larger), jnp.exp(b - larger)
        if dS is not None:
            weighted = weighted * rescale + e * dots(W, u, dS(j))
        return larger, total * rescale + e, weighted

    largest, total, weighted = jax.lax.fori_loop(0, len(inputs_ref.W), one, start)
    return largest + jnp.log(total), weighted / total


def logits(inputs_ref, W, u, V, j):
    return with_prior(dots(W, u, V(j)), None if inputs_ref.prior is None else inputs_ref.prior[j])


def with_prior(b, prior):
    if prior is None:
        return b
    return b + jnp.broadcast_to(prior.astype(jnp.float32)[:, None], b.shape)


def dots(W, u, y):
    """Returns u_i . W_ij^T y_j, ``[ib, bb]``, of y_j ``[D, bb]``."""
    return sum(u_k * dot(W_k, y, (0, 0)) for u_k, W_k in zip(u, W))


def weighted_votes(W, u, weights, dtype):
    """Returns sum_i W_ij (w_ij u_i), ``[D, bb]``, multiplied in the type of the capsules."""
    products = [(weights * u_k).astype(dtype) for u_k in u]
    return sum(dot(W_k, product, (1, 0)) for W_k, product in zip(W, products))


def read_u(inputs_ref):
    return [inputs_ref.u[k].astype(jnp.float32) for k in range(len(inputs_ref.u))]


def read_W(inputs_ref, j):
    return [inputs_ref.W[j, k] for k in range(len(inputs_ref.u))]


def read(ref, *index):
    return ref[index]


# Arrays and blocks


def call(kernel, name, *, grid, in_specs, outputs, num_warps, interpret):
    """Returns a pallas_call with outputs ``(shape, block)`` in float32."""
    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=in_specs,
        out_specs=[spec for _, spec in outputs],
        out_shape=[jax.ShapeDtypeStruct(shape, jnp.float32) for shape, _ in outputs],
        compiler_params=pltriton.CompilerParams(num_warps=num_warps, num_stages=2),
        interpret=interpret,
        name=name,
    )


def arrange(inputs, config):
    """Returns inputs padded to whole blocks, and the config of this size of batch."""
    examples = max(SMALLEST, pl.next_power_of_2(inputs.u.shape[2]))
    config = dataclasses.replace(config, examples=min(config.examples, examples))
    return pad_inputs(inputs, config, pose=_pose(inputs.W.shape[3])), config


def _pose(D):
    return max(SMALLEST, pl.next_power_of_2(D))


def pad_state(s, config):
    """Pads V, dS or a stack of them, ``[..., D, B]``."""
    return pad(s, {s.ndim - 2: _pose(s.shape[-2]), s.ndim - 1: config.examples})
