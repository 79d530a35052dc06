"""What the kernels of all backends share: padding to whole blocks, products of blocks.

Padding is safe because zeros in u and W add nothing to any sum of routing.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp


class Unsupported(ValueError):
    """A kernel cannot do this; the message names the argument and what the kernel takes."""


def check_dtype(name: str, x: jax.Array) -> None:
    """Raises :class:`Unsupported` for float64, which no accelerator multiplies."""
    if x.dtype == jnp.float64:
        raise Unsupported(f"{name} is {x.dtype}; Pallas kernels take float32, bfloat16, float16")


def pad(x: jax.Array, multiples: Mapping[int, int]) -> jax.Array:
    """Appends zeros until each named axis is a multiple of its number.

    Example:
      >>> pad(jnp.ones((3, 5)), {1: 4}).shape
      (3, 8)
    """
    widths = [(0, -size % multiples.get(axis, 1)) for axis, size in enumerate(x.shape)]
    return jnp.pad(x, widths) if any(after for _, after in widths) else x


def unpad(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns the part of a padded array that has the given shape."""
    return x if x.shape == shape else x[tuple(slice(size) for size in shape)]


def dot(x: jax.Array, y: jax.Array, contract: tuple[int, int]) -> jax.Array:
    """Multiplies two matrices over one axis of each.

    The product is taken in the narrower of their types and summed in float32. For float32
    matrices its precision is ``jax.default_matmul_precision``.
    """
    narrow = min(x.dtype, y.dtype, key=lambda dtype: dtype.itemsize)
    # Half-precision products are exact, and Mosaic refuses to be asked for more.
    precision = None if narrow == jnp.float32 else jax.lax.Precision.DEFAULT
    return jax.lax.dot_general(
        x.astype(narrow),
        y.astype(narrow),
        (tuple((axis,) for axis in contract), ((), ())),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
