"""Affine transformations of images about their centre, bilinear, pure and jit-able.

Written for one image; batched by ``jax.vmap`` over the image, the transformation, or both.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp


class Affine(NamedTuple):
    r"""What is done to an image, in this order: scaled, sheared, rotated, shifted.

    A point at x pixels to the right of the centre and y below it goes to

    .. math::
       \begin{pmatrix} \cos\phi & \sin\phi \\ -\sin\phi & \cos\phi \end{pmatrix}
       \begin{pmatrix} 1 & -k \\ 0 & 1 \end{pmatrix}
       \begin{pmatrix} s_x x \\ s_y y \end{pmatrix} + \begin{pmatrix} t_x \\ t_y \end{pmatrix}.

    Numbers, or arrays of one shape over which ``jax.vmap`` goes. The defaults change nothing.
    """

    rotation: chex.Numeric = 0.0  # phi, degrees, counter-clockwise as it is looked at
    shear: chex.Numeric = 0.0  # k, pixels to the right for each pixel upwards
    scale_x: chex.Numeric = 1.0  # above 0
    scale_y: chex.Numeric = 1.0  # above 0
    shift_x: chex.Numeric = 0.0  # pixels to the right
    shift_y: chex.Numeric = 0.0  # pixels downwards


def alone(name: str, value: chex.Numeric) -> Affine:
    """The transformation in which one thing differs; ``scale`` is that of both directions."""
    names = ("scale_x", "scale_y") if name == "scale" else (name,)
    return Affine()._replace(**dict.fromkeys(names, value))


def linear(transformation: Affine) -> jax.Array:
    """The matrix ``[2, 2]`` that acts on (x, y) before the shift."""
    t = jax.tree.map(jnp.asarray, transformation)
    phi = jnp.deg2rad(t.rotation)
    c, s = jnp.cos(phi), jnp.sin(phi)
    return jnp.stack(
        [
            jnp.stack([t.scale_x * c, t.scale_y * (s - t.shear * c)]),
            jnp.stack([-t.scale_x * s, t.scale_y * (c + t.shear * s)]),
        ]
    )


def warp(image: chex.Array, transformation: Affine) -> jax.Array:
    """Transform one image; every pixel is interpolated between four, zero outside.

    With the transformation that changes nothing the result is the image to the last bit.

    Args:
      image: ``[H, W, C]``, floats. transformation: of scalars.

    Returns:
      ``[H, W, C]``.
    """
    chex.assert_rank(image, 3)
    height, width, _ = image.shape
    t = jax.tree.map(lambda n: jnp.asarray(n, image.dtype), transformation)
    ((a, b), (c, d)) = linear(t)
    x = _from_centre(width, image.dtype)[None, :] - t.shift_x
    y = _from_centre(height, image.dtype)[:, None] - t.shift_y
    # Where each pixel comes from: the determinant is the product of the scales.
    area = t.scale_x * t.scale_y
    columns = (d * x - b * y) / area + (width - 1) / 2
    rows = (a * y - c * x) / area + (height - 1) / 2
    left, top = jnp.floor(columns), jnp.floor(rows)
    right, down = (columns - left)[..., None], (rows - top)[..., None]

    def corner(dy, dx):
        row, column = top + dy, left + dx
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        row = jnp.clip(row, 0, height - 1).astype(jnp.int32)
        column = jnp.clip(column, 0, width - 1).astype(jnp.int32)
        return jnp.where(inside[..., None], image[row, column], 0)

    upper = (1 - right) * corner(0, 0) + right * corner(0, 1)
    lower = (1 - right) * corner(1, 0) + right * corner(1, 1)
    return (1 - down) * upper + down * lower


def ink_bounds(image: chex.Array, transformation: Affine) -> tuple[jax.Array, jax.Array]:
    """Where the transformed image is not zero, before it is shifted.

    Args:
      image: ``[H, W, C]``; pixels above zero are ink. transformation: its shift is not used.

    Returns:
      Least and greatest (x, y) from the centre, in pixels: no pixel at or beyond them has ink.
      Inf and -inf where the image is empty.
    """
    height, width, _ = image.shape
    matrix = linear(transformation)
    x, y = jnp.meshgrid(_from_centre(width, matrix.dtype), _from_centre(height, matrix.dtype))
    places = jnp.stack([x, y], axis=2) @ matrix.T
    ink = jnp.any(image > 0, axis=2)[..., None]
    # A pixel spreads to those whose origin is less than one pixel away in x and in y.
    reach = jnp.abs(matrix).sum(axis=1)
    low = jnp.where(ink, places, jnp.inf).min(axis=(0, 1)) - reach
    return low, jnp.where(ink, places, -jnp.inf).max(axis=(0, 1)) + reach


def _from_centre(pixels, dtype):
    return jnp.arange(pixels, dtype=dtype) - (pixels - 1) / 2
