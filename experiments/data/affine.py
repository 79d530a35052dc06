"""Affine transformations of images about their centre, bilinear, pure and jit-able.

Written for one image; batched by ``jax.vmap`` over the image, the transformation, or both.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp


class Affine(NamedTuple):
    r"""An affine transformation of an image: scaling, shear, rotation and shift, in this order.

    A point at x pixels to the right of the centre and y below it goes to

    .. math::
       \begin{pmatrix} \cos\phi & \sin\phi \\ -\sin\phi & \cos\phi \end{pmatrix}
       \begin{pmatrix} 1 & -k \\ 0 & 1 \end{pmatrix}
       \begin{pmatrix} s_x x \\ s_y y \end{pmatrix} + \begin{pmatrix} t_x \\ t_y \end{pmatrix}.

    The fields are numbers, or arrays of one shape that are mapped over by ``jax.vmap``. The
    defaults are the identity.
    """

    rotation: chex.Numeric = 0.0  # phi, in degrees, counter-clockwise as seen by the viewer
    shear: chex.Numeric = 0.0  # k, pixels to the right for each pixel upwards
    scale_x: chex.Numeric = 1.0  # above 0
    scale_y: chex.Numeric = 1.0  # above 0
    shift_x: chex.Numeric = 0.0  # pixels to the right
    shift_y: chex.Numeric = 0.0  # pixels downwards


def single_transformation(name: str, value: chex.Numeric) -> Affine:
    """Returns the identity with one field changed; ``scale`` stands for both scales."""
    names = ("scale_x", "scale_y") if name == "scale" else (name,)
    return Affine()._replace(**dict.fromkeys(names, value))


def linear_part(transformation: Affine) -> jax.Array:
    """Returns the matrix ``[2, 2]`` that acts on (x, y) before the shift."""
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
    """Returns the transformed image, interpolated bilinearly, with zeros outside the image.

    The identity returns the image exactly, to the last bit.

    Args:
      image: ``[H, W, C]``, floats.
      transformation: with scalar fields.

    Returns:
      ``[H, W, C]``.
    """
    chex.assert_rank(image, 3)
    height, width, _ = image.shape
    t = jax.tree.map(lambda n: jnp.asarray(n, image.dtype), transformation)
    ((a, b), (c, d)) = linear_part(t)
    x = _from_centre(width, image.dtype)[None, :] - t.shift_x
    y = _from_centre(height, image.dtype)[:, None] - t.shift_y
    # The source of each pixel by the inverse matrix: the determinant is the product of the scales.
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
    """Returns bounds on the nonzero pixels of the transformed image, before it is shifted.

    Args:
      image: ``[H, W, C]``; pixels above zero are ink.
      transformation: its shift is ignored.

    Returns:
      The least and greatest (x, y) from the centre, in pixels: no pixel at or beyond them has
      ink. They are inf and -inf if the image is empty.
    """
    height, width, _ = image.shape
    matrix = linear_part(transformation)
    x, y = jnp.meshgrid(_from_centre(width, matrix.dtype), _from_centre(height, matrix.dtype))
    places = jnp.stack([x, y], axis=2) @ matrix.T
    ink = jnp.any(image > 0, axis=2)[..., None]
    # A pixel contributes to all pixels whose source is less than one pixel away in x and in y.
    reach = jnp.abs(matrix).sum(axis=1)
    low = jnp.where(ink, places, jnp.inf).min(axis=(0, 1)) - reach
    return low, jnp.where(ink, places, -jnp.inf).max(axis=(0, 1)) + reach


def _from_centre(pixels, dtype):
    return jnp.arange(pixels, dtype=dtype) - (pixels - 1) / 2
