"""The type in which half-precision numbers are accumulated."""

import chex
import jax
import jax.numpy as jnp


def accumulator(*dtypes) -> jnp.dtype:
    """float64 if any of the types is, otherwise float32.

    Example:
      >>> accumulator(jnp.bfloat16).name
      'float32'
    """
    return jnp.dtype(jnp.float64 if jnp.float64 in map(jnp.dtype, dtypes) else jnp.float32)


def product(a: chex.Array, b: chex.Array, spec: str) -> jax.Array:
    """``einsum(spec, a, b)`` in the dtype of ``a``, accumulated in :func:`accumulator` of it."""
    wide = jnp.einsum(spec, a, b, preferred_element_type=accumulator(a.dtype))
    return wide.astype(a.dtype)
