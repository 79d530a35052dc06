"""The passes of routing as Pallas kernels for TPU (Mosaic).

The mathematics and its letters are those of :mod:`capsjax.routing.agreement`. Votes are
never materialized; all work is matrix products with the batch along the 128 lanes:

    u [K, I, B]         blocks [K, ib, 128]      ib input capsules
    W [J, K, D, I]      blocks [J, K, D, ib]     all output capsules; transposed from [I, K, J, D]
    prior [J, I, 1]     blocks [J, ib, 1]
    V, S [J, D, B]      blocks [J, D, 128]

One step of the grid holds a block of capsules and 128 examples in VMEM. A first loop over j
fills an array [J, ib, 128] with the logits: W_jk^T V_j is a product on the matrix unit,
multiplied elementwise by u_k and summed over k. The normalizer works on the J arrays
elementwise. A second loop multiplies by W_jk once more.

``forward`` and ``backward_state`` walk over the capsules in the inner axis of the grid and add
to an output block that meanwhile stays in VMEM. ``backward_inputs`` walks over the batch in the
inner axis, because dW is a sum over the batch. I and B are padded with zeros to multiples of a
block; they are the lanes of W and of all other arrays.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from capsjax.routing import PassInputs
from capsjax.routing.agreement import even_coupling
from kernels import routing_steps_tpu as steps
from kernels.blocks import Unsupported, pad, unpad
from kernels.routing_blocks import input_specs, pad_inputs, unpad_gradients


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """Sizes of a block, in multiples of the 128 lanes, and limits of on-chip memory."""

    capsules: int = 128
    examples: int = 128
    # What a kernel may take of VMEM unless it asks for more, and the most that it may ask for.
    vmem_bytes: int = 16 * 2**20
    max_vmem_bytes: int = 64 * 2**20


DEFAULT = BlockConfig()


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
    """Calls a kernel that adds to an output like the states, and has a scratch for each."""
    inputs = _arrange(inputs, config)
    shape = J, D, _ = states[0].shape
    states = tuple(pad(s, {2: config.examples}) for s in states)
    state = pl.BlockSpec((J, D, config.examples), lambda b, i: (0, 0, b))
    coupling = pltpu.VMEM((J, config.capsules, config.examples), jnp.float32)
    total = pl.pallas_call(
        functools.partial(kernel, normalizer=normalizer),
        grid=(inputs.u.shape[2] // config.examples, inputs.u.shape[1] // config.capsules),
        in_specs=(input_specs(inputs, config, lambda b, i: (i, b)), *(state for _ in states)),
        out_specs=state,
        out_shape=jax.ShapeDtypeStruct(states[0].shape, jnp.float32),
        scratch_shapes=[coupling for _ in states],
        compiler_params=_compiler_params(inputs, config, len(states)),
        cost_estimate=_cost(inputs, config, 2 * len(states), [*states, states[0]]),
        interpret=interpret,
        name=f"routing_pass{kernel.__name__.removesuffix('_kernel')}",
    )(inputs, *states)
    return unpad(total, shape)


def _forward_kernel(inputs_ref, V_ref, S_ref, c_ref, *, normalizer):
    steps.zero_at_first_step(S_ref)
    steps.set_coupling(c_ref, inputs_ref, V_ref, normalizer)
    steps.add_weighted_votes(S_ref, inputs_ref, c_ref)


def _backward_state_kernel(inputs_ref, V_ref, dS_ref, dV_ref, c_ref, db_ref, *, normalizer):
    steps.zero_at_first_step(dV_ref)
    steps.set_coupling(c_ref, inputs_ref, V_ref, normalizer)
    steps.set_logit_gradient(db_ref, c_ref, inputs_ref, dS_ref)
    steps.add_weighted_votes(dV_ref, inputs_ref, db_ref)


def backward_inputs(
    inputs, Vs, dSs, normalizer, constant, *, config=DEFAULT, interpret=False
) -> PassInputs:
    """Returns gradients by the inputs; see :class:`capsjax.routing.PassKernels`."""
    padded = _arrange(inputs, config)
    _, J, D, _ = dSs.shape
    examples, passes = config.examples, len(Vs) + len(dSs)
    states = [pad(s, {3: examples}) for s in (Vs, dSs)]
    state_specs = (
        pl.BlockSpec((len(s), J, D, examples), lambda i, b: (0, 0, 0, b)) for s in states
    )
    specs = input_specs(padded, config, lambda i, b: (i, b))
    coupling = pltpu.VMEM((J, config.capsules, examples), jnp.float32)
    (gradients,) = pl.pallas_call(
        functools.partial(_backward_inputs_kernel, normalizer=normalizer, constant=constant),
        grid=(padded.u.shape[1] // config.capsules, padded.u.shape[2] // examples),
        in_specs=(specs, *state_specs),
        out_specs=[specs],
        out_shape=[jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.float32), padded)],
        scratch_shapes=[coupling, coupling],
        compiler_params=_compiler_params(padded, config, passes, gradients=True),
        cost_estimate=_cost(padded, config, 4 * passes, states, gradients=True),
        interpret=interpret,
        name="routing_pass_backward_inputs",
    )(padded, *states)
    if gradients.prior is not None:
        gradients = gradients._replace(prior=gradients.prior[:, :, 0])
    return unpad_gradients(gradients, inputs)


def _backward_inputs_kernel(
    inputs_ref, Vs_ref, dSs_ref, input_grads_ref, c_ref, db_ref, *, normalizer, constant
):
    steps.zero_at_first_step(input_grads_ref.W)
    if input_grads_ref.prior is not None:
        steps.zero_at_first_step(input_grads_ref.prior)

    input_grads_ref.u[...] = jnp.zeros(input_grads_ref.u.shape, input_grads_ref.u.dtype)
    for t in range(len(dSs_ref)):
        if even := t == len(Vs_ref):
            c_ref[...] = jnp.full(c_ref.shape, even_coupling(len(c_ref), normalizer), c_ref.dtype)
        else:
            steps.set_coupling(c_ref, inputs_ref, Vs_ref.at[t], normalizer)
        steps.add_products(input_grads_ref, inputs_ref, c_ref, dSs_ref.at[t])
        if even or constant:
            continue
        steps.set_logit_gradient(db_ref, c_ref, inputs_ref, dSs_ref.at[t])
        steps.add_products(input_grads_ref, inputs_ref, db_ref, Vs_ref.at[t])
        if input_grads_ref.prior is not None:
            input_grads_ref.prior[...] += jnp.sum(db_ref[...], axis=2, keepdims=True)


# Arrays and blocks


def _arrange(inputs, config):
    """Pads to whole blocks, and gives the prior its shape ``[J, I, 1]``."""
    u, W, prior = pad_inputs(inputs, config)
    if u.dtype == jnp.float16:  # which Mosaic can't load
        u, W = u.astype(jnp.float32), W.astype(jnp.float32)
    return PassInputs(u, W, None if prior is None else prior[:, :, None])


def _compiler_params(inputs, config, states, gradients=False):
    """Returns how to compile, with the VMEM for blocks (twice, to fetch the next) and scratch.

    Raises:
      Unsupported: the blocks do not fit into VMEM.
    """
    (K, _, _), (J, _, D, _) = inputs.u.shape, inputs.W.shape
    coupling = J * config.capsules * config.examples
    pairs = (
        (K * config.capsules * config.examples, inputs.u.dtype),
        (J * K * max(D, 8) * config.capsules, inputs.W.dtype),
    )
    blocks = sum(size * (dtype.itemsize + 4 * gradients) for size, dtype in pairs)
    blocks += 4 * (states + 1) * J * max(D, 8) * config.examples
    blocks += 4 * 2 * coupling * (inputs.prior is not None)
    needed = 2 * blocks + 4 * coupling * 2 + 2**21
    if needed > config.max_vmem_bytes:
        raise Unsupported(
            f"W [J, K, D, I] = {inputs.W.shape}: the TPU kernel needs {needed >> 20} MiB of VMEM "
            f"for all J output capsules, its limit is {config.max_vmem_bytes >> 20} MiB; use stream"
        )
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "arbitrary"),
        vmem_limit_bytes=max(needed, config.vmem_bytes),
    )


def _cost(inputs, config, products, states, gradients=False):
    """Returns what XLA, which can't look into a kernel, assumes: bytes as the grid moves them."""
    u, W, _ = inputs
    blocks = u.shape[2] // config.examples
    moved = u.size * (u.dtype.itemsize + 4 * gradients)
    # backward_inputs keeps a block of W, and of dW, while it walks over the batch.
    moved += W.size * (W.dtype.itemsize + 4 if gradients else blocks * W.dtype.itemsize)
    moved += sum(s.size * 4 for s in states)
    return pl.CostEstimate(
        flops=2 * products * W.size * u.shape[2],
        bytes_accessed=moved,
        transcendentals=W.shape[0] * u.shape[1] * u.shape[2],
    )
