"""Normalizers: how an input capsule is divided among the output capsules, from its logits.

Each function works along one axis, that of the output capsules.
"""

import chex
import jax
import jax.numpy as jnp


def softmax(logits: chex.Array, axis: int = -1) -> jax.Array:
    r"""Computes :math:`c_j = \exp(b_j) / \sum_k \exp(b_k)`, which sum to one.

    Equation 3 of Sabour, Frosst & Hinton (2017), over the *output* capsules j.
    """
    return jax.nn.softmax(logits, axis)


def leaky(logits: chex.Array, axis: int = -1) -> jax.Array:
    r"""Computes :math:`c_j = \exp(b_j) / (1 + \sum_k \exp(b_k))`, which sum to less than one.

    The authors' code for CIFAR-10: an additional output capsule with logit zero, whose share is
    dropped, takes what belongs to none of the others.
    """
    additional = jnp.zeros_like(jax.lax.slice_in_dim(logits, 0, 1, axis=axis))
    shares = jax.nn.softmax(jnp.concatenate([logits, additional], axis), axis)
    return jax.lax.slice_in_dim(shares, 0, logits.shape[axis], axis=axis)


def sigmoid(logits: chex.Array, axis: int = -1) -> jax.Array:
    r"""Computes :math:`c_j = 1 / (1 + \exp(-b_j))`: output capsules do not compete."""
    return jax.nn.sigmoid(logits)


def maxmin(logits: chex.Array, axis: int = -1) -> jax.Array:
    r"""Computes :math:`c_j = (b_j - \min_k b_k) / (\max_k b_k - \min_k b_k)`, in [0, 1].

    Zhao et al., "Capsule Networks with Max-Min Normalization" (2019, arXiv 1903.09662), between
    0 and 1: the output capsule with the largest logit takes an input capsule completely, that
    with the smallest not at all. Where all logits are equal, every output capsule takes it
    completely.
    """
    low, high = (f(logits, axis, keepdims=True) for f in (jnp.min, jnp.max))
    equal = high == low
    return jnp.where(equal, 1, (logits - low) / jnp.where(equal, 1, high - low))


def sparsemax(logits: chex.Array, axis: int = -1) -> jax.Array:
    r"""Computes :math:`c = \arg\min_{p \in \Delta} \|p - b\|^2`, which sum to one, with zeros.

    Martins & Astudillo, "From Softmax to Sparsemax" (2016): c_j = max(0, b_j - tau).
    """
    # The result does not depend on the shift, without which 1 is lost beside large logits.
    shifted = logits - jax.lax.stop_gradient(jnp.max(logits, axis, keepdims=True))
    z = jnp.sort(shifted, axis, descending=True)
    rank = _ranks(logits, axis)
    total = jnp.cumsum(z, axis)
    size = jnp.sum(1 + rank * z > total, axis, keepdims=True)
    tau = (jnp.take_along_axis(total, size - 1, axis) - 1) / size.astype(z.dtype)
    return jnp.maximum(shifted - tau, 0)


def entmax(logits: chex.Array, axis: int = -1) -> jax.Array:
    r"""Computes :math:`c_j = \max(0, b_j / 2 - \tau)^2`, which sum to one, with zeros.

    Between softmax and sparsemax. Peters, Niculae & Martins, "Sparse Sequence-to-Sequence
    Models" (2019), with alpha = 1.5.
    """
    half = (logits - jnp.max(logits, axis, keepdims=True)) / 2
    z = jnp.sort(half, axis, descending=True)
    rank = _ranks(logits, axis)
    mean, square = jnp.cumsum(z, axis) / rank, jnp.cumsum(z * z, axis) / rank
    left = (1 - rank * (square - mean * mean)) / rank
    # The inner `where` keeps the derivative of sqrt finite.
    taus = mean - jnp.where(left > 0, jnp.sqrt(jnp.where(left > 0, left, 1)), 0)
    size = jnp.sum(taus <= z, axis, keepdims=True)
    return jnp.square(jnp.maximum(half - jnp.take_along_axis(taus, size - 1, axis), 0))


NORMALIZERS = {f.__name__: f for f in (softmax, leaky, sigmoid, maxmin, sparsemax, entmax)}


def normalize(logits: chex.Array, normalizer: str = "softmax", axis: int = -1) -> jax.Array:
    """Computes coupling coefficients, of the shape of ``logits``.

    Args:
      logits: ``[I, J]``; with a batch as the last or first axis, another ``axis`` or rank 3.
      normalizer: a key of :data:`NORMALIZERS`.
      axis: the axis of the output capsules.

    Raises:
      ValueError: unknown name.
      AssertionError: another rank.
    """
    chex.assert_rank(logits, {2, 3})
    if normalizer not in NORMALIZERS:
        legal = ", ".join(NORMALIZERS)
        raise ValueError(f"normalizer must be one of {legal}, not {normalizer!r}")
    return NORMALIZERS[normalizer](logits, axis)


def _ranks(x, axis):
    """Returns 1, 2, ... along an axis."""
    return jnp.cumsum(jnp.ones_like(x), axis)
