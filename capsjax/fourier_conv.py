"""Convolution by the convolution theorem, in matrix products that a CPU is fast at.

Image and kernel are split by stride phase, which leaves stride-1 correlations of short kernels, and
the results cut into tiles, each of which needs ``length = out + kernel - 1`` samples of a phase
along an axis:

===== ==================================== ====================================================
array layout                               what it is
===== ==================================== ====================================================
x     ``[length length, B tiles, C]``      tiles of the images, channels C of all phases
w     ``[kernel kernel, C, O]``            the kernel
X     ``[F, 2 B tiles, C]``                real and imaginary parts of the transformed tiles
W     two of ``[F, C, O]``                 real and imaginary part of the transformed kernel
Y     two of ``[F, 2 B tiles, O]``         2 F matrix products, which sum over phases, channels
y     ``[out out, B tiles, O]``            what is transformed back
===== ==================================== ====================================================

Of F = length^2 / 2 frequencies: the others are their conjugates. Three products of real numbers
would do for a complex one; but they need the sum of real and imaginary part of everything, and
writing and reading that takes as long as the products that they save, in small batches longer.

The transforms are matrices, made from the sizes. Large tiles need fewer products ``X W``, small
ones cheaper transforms and more copies: the cheapest number of tiles is found by counting.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from capsjax.precision import product

# Multiplications that take as long as cutting out one sample, and adding up its gradient: what
# makes tiles neither gain nor lose in CapsNet's second layer for images of 40x40 pixels.
CUT = 400


class _Axis(NamedTuple):
    """Sizes along one image axis, of one stride phase."""

    tiles: int
    out: int  # outputs of a tile
    kernel: int  # kernel taps
    length: int  # samples that a tile needs, and the length of the transform


def convolve(x: chex.Array, w: chex.Array, stride: int, tiles: int | None = None) -> jax.Array:
    """Valid cross-correlation, as :func:`capsjax.conv2d`.

    Args:
      x: images ``[B, H, W, C]``. w: kernels ``[k, k, C, O]``. stride: in both directions.
      tiles: most along an axis; None chooses.
    """
    B, H, W, C = x.shape
    k, _, _, O = w.shape
    h, v = _axes(x.shape, w.shape, stride, tiles or _cheapest(x.shape, w.shape, stride))
    x = _cut(_cut(x, 1, h, stride), 4, v, stride).transpose(2, 5, 0, 1, 4, 3, 6, 7)
    x = x.reshape(h.length * v.length, B * h.tiles * v.tiles, stride * stride * C)
    w = jnp.pad(w, ((0, stride * h.kernel - k), (0, stride * v.kernel - k), (0, 0), (0, 0)))
    w = w.reshape(h.kernel, stride, v.kernel, stride, C, O).transpose(0, 2, 1, 3, 4, 5)
    w = w.reshape(h.kernel * v.kernel, stride * stride * C, O)
    y = _correlate(h, v, x, w).reshape(h.out, v.out, B, h.tiles, v.tiles, O)
    y = y.transpose(2, 3, 0, 4, 1, 5).reshape(B, h.tiles * h.out, v.tiles * v.out, O)
    return y[:, : (H - k) // stride + 1, : (W - k) // stride + 1]


def cost(
    x_shape: Sequence[int], w_shape: Sequence[int], stride: int, tiles: int | None = None
) -> int:
    """Time, counted in multiplications of a matrix product that would take as long.

    Args:
      x_shape: ``[B, H, W, C]``. w_shape: ``[k, k, C, O]``. stride: in both directions.
      tiles: most along an axis; None for the cheapest number.
    """
    if tiles is None:
        return cost(x_shape, w_shape, stride, _cheapest(x_shape, w_shape, stride))
    h, v = _axes(x_shape, w_shape, stride, tiles)
    images, channels, outputs = x_shape[0] * h.tiles * v.tiles, x_shape[3] * stride**2, w_shape[3]
    samples = h.length * v.length * channels * images
    transforms = (
        samples + h.kernel * v.kernel * channels * outputs + 2 * h.out * v.out * outputs * images
    )
    # Transforms run at half the speed, because they are narrow.
    products = 4 * channels * outputs * images + 2 * 2 * transforms
    return _frequencies(h, v) * products + CUT * samples


def _cheapest(x_shape, w_shape, stride) -> int:
    most = (max(x_shape[1:3]) - w_shape[0]) // stride + 1
    return min(range(1, most + 1), key=lambda tiles: cost(x_shape, w_shape, stride, tiles))


def _axes(x_shape, w_shape, stride, tiles) -> tuple[_Axis, _Axis]:
    def axis(size):
        outputs = (size - w_shape[0]) // stride + 1
        out = -(-outputs // tiles)
        kernel = -(-w_shape[0] // stride)
        return _Axis(-(-outputs // out), out, kernel, out + kernel - 1)

    return axis(x_shape[1]), axis(x_shape[2])


def _cut(x, n, axis, stride):
    """Axis n of x into three, ``[tiles, length, stride]``; tiles overlap."""
    step, size = stride * axis.out, stride * axis.length
    needed = step * (axis.tiles - 1) + size
    # Samples beyond the last output never matter, nor do outputs beyond the last sample.
    x = lax.slice_in_dim(x, 0, min(needed, x.shape[n]), axis=n)
    x = jnp.pad(x, [(0, needed - x.shape[n] if m == n else 0) for m in range(x.ndim)])
    tiles = [lax.slice_in_dim(x, step * t, step * t + size, axis=n) for t in range(axis.tiles)]
    x = jnp.stack(tiles, n)
    return x.reshape(*x.shape[: n + 1], axis.length, stride, *x.shape[n + 2 :])


def _frequencies(h: _Axis, v: _Axis) -> int:
    return -(-h.length * v.length // 2)


@functools.cache
def _transforms(h: _Axis, v: _Axis) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matrices of the discrete Fourier transforms of image, kernel and result, in float64.

    With X = a + ib the transform of the image and conj(W) = c + id that of the kernel, Y is
    (ac - bd) + i(ad + bc). Frequencies that are their own mirror image have real transforms: two
    of them, or one and zero, share a place as a and b, c and d.

    Returns:
      image ``[F, 2, L L]`` for a, b; kernel ``[2, F, k k]`` for c, d; result
      ``[2, out out, F, 2]`` from ac, bc and from ad, bd.
    """
    every = list(np.ndindex(h.length, v.length))
    mirror = {(f, g): (-f % h.length, -g % v.length) for f, g in every}
    own = np.array([p for p in every if p == mirror[p]])
    other = np.array([p for p in every if p < mirror[p]]).reshape(-1, 2)

    def waves(height, width):
        """cos ``[own, n]``, cos and sin ``[others, n]`` at the places of a height x width grid."""
        y, x = np.divmod(np.arange(height * width), width)

        def angles(frequencies):
            f, g = frequencies.T
            return 2 * np.pi * ((np.outer(f, y) / h.length + np.outer(g, x) / v.length) % 1)

        return np.cos(angles(own)), np.cos(angles(other)), np.sin(angles(other))

    def paired(own, first, second):
        """``[F, 2, n]``"""
        own = np.pad(own, ((0, len(own) % 2), (0, 0)))
        return np.concatenate([own.reshape(-1, 2, own.shape[1]), np.stack([first, second], 1)])

    real, cos, sin = waves(h.length, v.length)
    image = paired(real, cos, -sin)
    real, cos, sin = waves(h.kernel, v.kernel)
    kernel = paired(real, cos, sin).transpose(1, 0, 2)
    real, cos, sin = waves(h.out, v.out)
    (ac, bd), (ad, bc) = (
        paired(*parts).transpose(1, 2, 0)
        for parts in ((real, 2 * cos, -2 * cos), (0 * real, -2 * sin, -2 * sin))
    )
    result = np.stack([np.stack([ac, bc], -1), np.stack([ad, bd], -1)])
    return image, kernel, result / (h.length * v.length)


def _correlate(h, v, x, w):
    """Stride-1 correlation ``[out out, B, O]`` of x ``[L L, B, C]`` with w ``[k k, C, O]``."""
    F, B, C = _frequencies(h, v), *x.shape[1:]
    image, kernel, result = (jnp.asarray(m, x.dtype) for m in _transforms(h, v))
    X = product(image.reshape(2 * F, -1), x, "fn,nbc->fbc").reshape(F, 2 * B, C)

    def one(kernel, result):
        Y = product(X, product(kernel, w, "fn,nco->fco"), "fbc,fco->fbo")
        return product(result.reshape(-1, 2 * F), Y.reshape(2 * F, B, -1), "nf,fbo->nbo")

    return one(kernel[0], result[0]) + one(kernel[1], result[1])
