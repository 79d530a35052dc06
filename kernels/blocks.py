"""What the kernels of all backends share: padding to whole blocks, products of blocks.

Zeros in u and W add nothing to any sum of routing.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp


def pad(x: jax.Array, multiples: Mapping[int, int]) -> jax.Array:
    """Append zeros until each named axis is a multiple of its number.

    Example:
      >>> pad(jnp.ones((3, 5)), {1: 4}).shape
      (3, 8)
    """
    widths = [(0, -size % multiples.get(axis, 1)) for axis, size in enumerate(x.shape)]
    return jnp.pad(x, widths) if any(after for _, after in widths) else x


def cut(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The part of a padded array that has the given shape."""
    return x if x.shape == shape else x[tuple(slice(size) for size in shape)]


class Unsupported(ValueError):
    """A kernel can't do this; the message names the argument and what the kernel takes."""


def check_dtype(name: str, x: jax.Array) -> None:
    """Raise :class:`Unsupported` for what no accelerator multiplies: float64."""
    if x.dtype == jnp.float64:
        raise Unsupported(f"{name} is {x.dtype}; Pallas kernels take float32, bfloat16, float16")


def dot(x: jax.Array, y: jax.Array, contract: tuple[int, int]) -> jax.Array:
    """Product of two matrices over one axis of each.

    In the narrower of their types, summed in float32; of float32 matrices as precise as
    ``jax.default_matmul_precision`` says.
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
