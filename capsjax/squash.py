r"""Length of a vector, and the non-linearities that turn it into a probability.

All shrink a vector of length n to a length below one, v = g(n) s. They differ where lengths are
small: the paper's gain n / (1 + n^2) is never above 1/2 and vanishes at zero, a contraction in
every direction (spectral norm at most 0.65), so that stacked layers fade: 0.9, 0.45, 0.17,
0.027, 7e-4. The gain of :func:`squash_exponential` is one at zero: 0.9, 0.59, 0.45, 0.36, 0.30.
"""

from collections.abc import Callable

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


def squash_exponential(s: chex.Array, axis: int = -1) -> jax.Array:
    r"""Squash whose gain is one at zero.

    .. math:: v = (1 - e^{-\|s\|}) \frac{s}{\|s\|}

    Xi, Bing & Jin, "Capsule Network Performance on Complex Data" (2017); Efficient-CapsNet
    (Mazzia et al. 2021). The safer choice for stacks of capsule layers.

    Args:
      s, axis: see :func:`squash`.

    Example:
      >>> [round(v, 4) for v in squash_exponential(jnp.array([0.3, 0.4])).tolist()]
      [0.2361, 0.3148]
    """
    s = _at_least_float32(s)
    n = safe_norm(s, axis, keepdims=True)
    # The series where the derivative of the quotient would divide by a square that underflows.
    small = n < jnp.finfo(s.dtype).eps ** 0.5
    gain = jnp.where(small, 1 - n / 2, -jnp.expm1(-n) / jnp.where(small, 1, n))
    longest = 1 - 16 * jnp.finfo(s.dtype).eps
    return s * jnp.where(n > 1, jnp.minimum(gain, longest / jnp.where(n > 1, n, 1)), gain)


def squash_half(s: chex.Array, axis: int = -1) -> jax.Array:
    r"""Squash that lengthens vectors of medium length.

    .. math:: v = \frac{\|s\|^2}{0.5 + \|s\|^2} \frac{s}{\|s\|}

    From public code (bojone's Capsule; NLP-Capsule, Zhao et al. 2019). It is the paper's squash
    of a vector sqrt(2) times as long, with a gain of at most sqrt(1/2).

    Args:
      s, axis: see :func:`squash`.
    """
    # With t = s sqrt(2): n^2 / (0.5 + n^2) = |t|^2 / (1 + |t|^2).
    return squash(_at_least_float32(s) * 2**0.5, axis)


def no_squash(s: chex.Array, axis: int = -1) -> jax.Array:
    """The vector itself, for algorithms whose activation is not a length."""
    return _at_least_float32(s)


SQUASHES = {
    "paper": squash,
    "exponential": squash_exponential,
    "half": squash_half,
    "none": no_squash,
}


def squash_by_name(name: str) -> Callable:
    """The function ``(s, axis=-1) -> v`` of a name of :data:`SQUASHES`.

    Raises:
      ValueError: unknown name.
    """
    if name not in SQUASHES:
        raise ValueError(f"squash must be one of {', '.join(SQUASHES)}, not {name!r}")
    return SQUASHES[name]
