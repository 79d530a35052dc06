r"""The length of a vector, and the non-linearities that bound it so that it is a probability.

Each maps a vector s of length n to v = g(n) s of a length below one. They differ at small lengths.
The gain of the paper, n / (1 + n^2), is at most 1/2 and vanishes at zero; its map contracts in
every direction (the spectral norm is at most 0.65), so that lengths vanish when it is applied
repeatedly: 0.9, 0.45, 0.17, 0.027, 7e-4. The gain of :func:`squash_exponential` is one at zero:
0.9, 0.59, 0.45, 0.36, 0.30.
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
    r"""Compute the Euclidean length, with the gradient zero where the vector is zero.

    .. math:: \|x\| = \sqrt{\textstyle\sum_d x_d^2}

    ``jnp.linalg.norm`` has a NaN gradient at zero, and its squares underflow or overflow: in
    float32 it is wrong below 1e-19 and above 1e19. Division by the largest component avoids both.

    Args:
      x: array of any shape; half precision is computed in float32.
      axis: the axis of the components of a vector.
      keepdims: whether to keep ``axis``, with size one.

    Returns:
      Non-negative lengths, float32 or wider.

    Example:
      >>> safe_norm(jnp.array([3.0, 4.0])).item()
      5.0
    """
    x = _at_least_float32(x)
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=axis, keepdims=True))
    # A NaN fails this comparison and the next one, and therefore stays a NaN.
    scale = jnp.where(largest < jnp.finfo(x.dtype).tiny, 1, largest)
    squares = jnp.sum(jnp.square(x / scale), axis=axis, keepdims=True)
    zero = squares == 0
    # The inner `where` keeps the derivative of sqrt finite; the outer one makes it zero.
    length = jnp.where(zero, 0, scale * jnp.sqrt(jnp.where(zero, 1, squares)))
    return length if keepdims else jnp.squeeze(length, axis)


def squash(s: chex.Array, axis: int = -1) -> jax.Array:
    r"""Shrink vectors to a length between zero and one, keeping their direction.

    .. math:: v = \frac{\|s\|^2}{1 + \|s\|^2} \frac{s}{\|s\|}

    Equation 1 of Sabour, Frosst & Hinton (2017). The value and the gradient are defined everywhere,
    including zero. The length of the result is strictly below one; floating point alone would
    round it to one for lengths above about 4,000.

    Args:
      s: vectors of any length; half precision is computed in float32.
      axis: the axis of the components of a vector.

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
    r"""Shrink vectors to a length below one, with a gain of one at zero.

    .. math:: v = (1 - e^{-\|s\|}) \frac{s}{\|s\|}

    Xi, Bing & Jin, "Capsule Network Performance on Complex Data" (2017); Efficient-CapsNet
    (Mazzia et al. 2021). It is the safer choice for several capsule layers.

    Args:
      s: see :func:`squash`.
      axis: see :func:`squash`.

    Example:
      >>> [round(v, 4) for v in squash_exponential(jnp.array([0.3, 0.4])).tolist()]
      [0.2361, 0.3148]
    """
    s = _at_least_float32(s)
    n = safe_norm(s, axis, keepdims=True)
    # The series is used where the derivative of the quotient divides by a square that underflows.
    small = n < jnp.finfo(s.dtype).eps ** 0.5
    gain = jnp.where(small, 1 - n / 2, -jnp.expm1(-n) / jnp.where(small, 1, n))
    longest = 1 - 16 * jnp.finfo(s.dtype).eps
    return s * jnp.where(n > 1, jnp.minimum(gain, longest / jnp.where(n > 1, n, 1)), gain)


def squash_half(s: chex.Array, axis: int = -1) -> jax.Array:
    r"""Shrink long vectors to a length below one and lengthen those of medium length.

    .. math:: v = \frac{\|s\|^2}{0.5 + \|s\|^2} \frac{s}{\|s\|}

    From public code (bojone's Capsule; NLP-Capsule, Zhao et al. 2019). It is the squash of the
    paper applied to sqrt(2) s, with a gain of at most sqrt(1/2).

    Args:
      s: see :func:`squash`.
      axis: see :func:`squash`.
    """
    # With t = s sqrt(2): n^2 / (0.5 + n^2) = |t|^2 / (1 + |t|^2).
    return squash(_at_least_float32(s) * 2**0.5, axis)


def layer_norm(s: chex.Array, axis: int = -1) -> jax.Array:
    r"""Normalize the components of each vector to mean zero and variance one.

    .. math:: v_d = (s_d - \bar s) / \sqrt{\sigma^2 + 10^{-5}}

    Not a squash: the primary capsules of Tsai et al. (2020).

    Example:
      >>> layer_norm(jnp.array([1.0, 3.0])).round(3).tolist()
      [-1.0, 1.0]
    """
    s = _at_least_float32(s)
    centered = s - jnp.mean(s, axis, keepdims=True)
    return centered * jax.lax.rsqrt(jnp.mean(centered * centered, axis, keepdims=True) + 1e-5)


def no_squash(s: chex.Array, axis: int = -1) -> jax.Array:
    """Return the vector itself, for algorithms whose activation is not a length."""
    return _at_least_float32(s)


# The squashes by name.
SQUASHES = {
    "paper": squash,
    "exponential": squash_exponential,
    "half": squash_half,
    "none": no_squash,
}

# What may be done with the poses of primary capsules.
POSE_MAPS = {**SQUASHES, "layer_norm": layer_norm}


def squash_by_name(name: str) -> Callable:
    """Look up a squash ``(s, axis=-1) -> v``.

    Args:
      name: a key of :data:`SQUASHES`.

    Raises:
      ValueError: the name is unknown.
    """
    if name not in SQUASHES:
        raise ValueError(f"squash must be one of {', '.join(SQUASHES)}, not {name!r}")
    return SQUASHES[name]
