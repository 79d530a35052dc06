"""Length of a vector, and the non-linearity that turns it into a probability."""

import chex
import jax
import jax.numpy as jnp

from capsjax.precision import accumulator


def _at_least_float32(x):
    x = jnp.asarray(x)
    return x.astype(accumulator(x.dtype))


def safe_norm(x: chex.Array, axis: int = -1, keepdims: bool = False) -> jax.Array:
    r"""Euclidean length, with the gradient zero where the vector is zero.

    .. math:: \|x\| = \sqrt{\textstyle\sum_d x_d^2}

    ``jnp.linalg.norm`` has a NaN gradient at zero, and squares that underflow or
    overflow: in float32 it is wrong below 1e-19 and above 1e19. Dividing by the
    largest component first avoids both.

    Args:
      x: array of any shape; half precision is computed in float32.
      axis: the axis that holds the components of one vector.
      keepdims: keep ``axis`` with size one.

    Returns:
      Non-negative lengths, float32 or wider.

    Example:
      >>> safe_norm(jnp.array([3.0, 4.0])).item()
      5.0
    """
    x = _at_least_float32(x)
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=axis, keepdims=True))
    # Written so that a NaN fails the comparisons and stays a NaN.
    scale = jnp.where(largest < jnp.finfo(x.dtype).tiny, 1, largest)
    squares = jnp.sum(jnp.square(x / scale), axis=axis, keepdims=True)
    zero = squares == 0
    # The inner `where` keeps the derivative of sqrt finite, the outer one makes it zero.
    length = jnp.where(zero, 0, scale * jnp.sqrt(jnp.where(zero, 1, squares)))
    return length if keepdims else jnp.squeeze(length, axis)


def squash(s: chex.Array, axis: int = -1) -> jax.Array:
    r"""Shrink vectors to a length between zero and one, keeping their direction.

    .. math:: v = \frac{\|s\|^2}{1 + \|s\|^2} \frac{s}{\|s\|}

    Equation 1 of Sabour, Frosst & Hinton (2017). Value and gradient are defined
    everywhere, zero included, and the length stays strictly below one although
    floating point would round it up to one from about 4,000 on.

    Args:
      s: vectors of any length; half precision is computed in float32.
      axis: the axis that holds the components of one vector.

    Returns:
      Array of the shape of ``s``, float32 or wider.

    Example:
      >>> [round(v, 4) for v in squash(jnp.array([3.0, 4.0])).tolist()]  # length 25/26
      [0.5769, 0.7692]
    """
    s = _at_least_float32(s)
    n = safe_norm(s, axis, keepdims=True)
    # n / (1 + n^2) is the same for n and 1/n; the smaller of the two can't overflow.
    r = jnp.where(n > 1, 1 / jnp.where(n > 1, n, 1), n)
    gain = r / (1 + r * r)
    longest = 1 - 16 * jnp.finfo(s.dtype).eps
    return s * jnp.where(n > 1, jnp.minimum(gain, longest * r), gain)
