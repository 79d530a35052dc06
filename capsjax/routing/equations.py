"""Equations that several routing algorithms share, for one example.

Of the equations of Sabour et al. (2017), the squash (1) is in :mod:`capsjax.squash`, the votes (2,
right) are in :mod:`capsjax.votes`, and the softmax (3) is in :mod:`capsjax.routing.normalizers`.
"""

import chex
import jax
import jax.numpy as jnp

from capsjax.squash import safe_norm

EPSILON = 1e-5  # added to a variance before its square root is taken


def weighted_sum(coupling: chex.Array, votes: chex.Array) -> jax.Array:
    r"""Computes the total input of the output capsules, :math:`s_j = \sum_i c_{ij} \hat u_{j|i}`.

    Equation 2 (left) of Sabour, Frosst & Hinton (2017).

    Args:
      coupling: ``[I, J]``.
      votes: ``[I, J, D]``.

    Returns:
      ``[J, D]``.

    Raises:
      AssertionError: the ranks or the sizes I and J do not agree.
    """
    chex.assert_rank([coupling, votes], [2, 3])
    chex.assert_equal_shape_prefix([coupling, votes], 2)
    return jnp.einsum("ij,ijd->jd", coupling, votes)


def agreement(votes: chex.Array, v: chex.Array) -> jax.Array:
    r"""Computes the scalar products :math:`a_{ij} = \hat u_{j|i} \cdot v_j` of votes and outputs.

    Args:
      votes: ``[I, J, D]``.
      v: outputs of the output capsules, ``[J, D]``.

    Returns:
      ``[I, J]``.

    Raises:
      AssertionError: the ranks or the sizes J and D do not agree.
    """
    chex.assert_rank([votes, v], [3, 2])
    chex.assert_equal_shape_suffix([votes, v], 2)
    return jnp.einsum("ijd,jd->ij", votes, v)


def direction(x: chex.Array) -> jax.Array:
    r"""Computes the unit vector :math:`x / \|x\|` along the last axis; zero for a zero vector.

    Components are divided by the largest first, because the derivative of the quotient divides by
    the squared length, which underflows in float32 below 1e-19.
    """
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), -1, keepdims=True))
    scaled = x / jnp.where(largest < jnp.finfo(x.dtype).tiny, 1, largest)
    n = safe_norm(scaled, keepdims=True)
    return scaled / jnp.where(n > 0, n, 1)


def within_resolution(logits: chex.Array) -> jax.Array:
    """Scales logits down to where rounding errors are of order one, if they are larger.

    A compiler may compute logits once for their maximum and once more for the exponential, and
    round them differently. Above 1e9 in float32 the difference is larger than 88, and the softmax
    overflows. The logits ``[I, J]`` of an input capsule are divided by one number, so their order
    stays; up to 8e6 in float32, or 4.5e15 in float64, they stay as they are.
    """
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(logits), -1, keepdims=True))
    return logits / jnp.maximum(largest * jnp.finfo(logits.dtype).eps, 1)


def standardize(x: chex.Array) -> jax.Array:
    r"""Computes :math:`(x - \bar x) / \sqrt{\sigma^2 + 10^{-5}}` over the last axis.

    Args:
      x: ``[J]`` or ``[J, D]``.

    Raises:
      AssertionError: another rank.
    """
    chex.assert_rank(x, {1, 2})
    centered = x - jnp.mean(x, -1, keepdims=True)
    return centered * jax.lax.rsqrt(jnp.mean(centered * centered, -1, keepdims=True) + EPSILON)


@jax.custom_jvp
def quotient(x: chex.Array, y: chex.Array) -> jax.Array:
    r"""Computes x / y, with derivatives wherever the quotient is a number of moderate size.

    The usual rule divides by :math:`y^2`, which in float32 is zero below 1e-19 and infinite above
    1e19. This one is :math:`d(x / y) = (dx - (x / y)\, dy) / y`.

    Args:
      x, y: of shapes that broadcast.
    """
    return x / y


@quotient.defjvp
def _(primals, tangents):
    (x, y), (dx, dy) = primals, tangents
    q = quotient(x, y)
    return q, quotient(dx - q * dy, y)
