"""How the kernels of routing divide their inputs into blocks, on TPUs and GPUs alike.

A config has the sizes of a block: ``capsules``, the number of input capsules, and ``examples``.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import pallas as pl

from capsjax.routing import PassInputs
from kernels.blocks import check_dtype, pad, unpad


def pad_inputs(inputs: PassInputs, config: Any, pose: int = 1) -> PassInputs:
    """Pads I and B to multiples of a block, D of ``pose``; transposes W to ``[J, K, D, I]``.

    Raises:
      Unsupported: u is of a type that kernels do not take.
    """
    check_dtype("u", inputs.u)
    u = pad(inputs.u, {1: config.capsules, 2: config.examples})
    W = pad(inputs.W.transpose(2, 1, 3, 0), {2: pose, 3: config.capsules})
    prior = None if inputs.prior is None else pad(inputs.prior, {1: config.capsules})
    return PassInputs(u, W, prior)


def input_specs(inputs: PassInputs, config: Any, position: Callable[..., tuple]) -> PassInputs:
    """Returns the blocks of padded inputs, each with all output capsules.

    ``position`` gives the numbers (i, b) of the block from the place in the grid.
    """
    (K, _, _), (J, _, D, _) = inputs.u.shape, inputs.W.shape
    u = pl.BlockSpec((K, config.capsules, config.examples), lambda *at: (0, *position(*at)))
    W = pl.BlockSpec((J, K, D, config.capsules), lambda *at: (0, 0, 0, position(*at)[0]))
    if inputs.prior is None:
        return PassInputs(u, W)
    lanes = inputs.prior.shape[2:]  # on TPU, an axis of size one
    shape = J, config.capsules, *lanes
    return PassInputs(
        u, W, pl.BlockSpec(shape, lambda *at: (0, position(*at)[0], *(0 for _ in lanes)))
    )


def unpad_gradients(gradients: PassInputs, inputs: PassInputs) -> PassInputs:
    """Undoes :func:`pad_inputs`: returns gradients of the shapes and types of the inputs."""
    gradients = gradients._replace(W=gradients.W.transpose(3, 1, 0, 2))
    return jax.tree.map(lambda g, x: unpad(g, x.shape).astype(x.dtype), gradients, inputs)
