"""The type in which half-precision numbers are accumulated."""

import jax.numpy as jnp


def accumulator(*dtypes) -> jnp.dtype:
    """float64 if any of the types is, otherwise float32.

    Example:
      >>> accumulator(jnp.bfloat16).name
      'float32'
    """
    return jnp.dtype(jnp.float64 if jnp.float64 in map(jnp.dtype, dtypes) else jnp.float32)
