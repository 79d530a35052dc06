r"""Convolution by interpolation, after Winograd and after Toom and Cook, in matrix products.

Image and kernel are split by stride phase, which leaves correlations of short kernels with stride
1. The outputs are divided into tiles, each of which needs ``length = out + kernel - 1`` samples of
a phase along an axis:

===== ================================= ======================================================
array layout                            what it is
===== ================================= ======================================================
x     ``[length length, B tiles, C]``   tiles of the images, channels C of all phases
w     ``[kernel kernel, C, O]``         the kernel
X     ``[P, B tiles, C]``               the transformed tiles
W     ``[P, C, O]``                     the transformed kernel
Y     ``[P, B tiles, O]``               P matrix products, which sum over phases and channels
y     ``[out out, B tiles, O]``         what is transformed back
===== ================================= ======================================================

Along an axis, two polynomials of ``out`` and ``kernel`` coefficients have a product of ``length``
coefficients, which is determined by its values at ``length`` points. If the columns of V_n are the
first n powers of the points, the coefficients are
:math:`V_{length}^{-1} (V_{out} a \circ V_{kernel} w)`. As a function of a, this is a linear map,
and its transpose is the correlation:

.. math:: y = V_{out}^T (V_{length}^{-T} x \circ V_{kernel} w)

Along two axes the points are pairs. The value at a real point takes one product, and the values at
two conjugate points together take three (of real parts, of imaginary parts, of their sums), so
that real points need fewer products. Only 0, 1, -1 and infinity are as well conditioned as points
on the unit circle, however: with 1/2 and -2 float32 loses one bit of accuracy, with two more real
points it would lose three. Roots of unity alone would be Fourier's transform, with up to a fifth
more products.

The transforms are matrices that depend only on the sizes. Large tiles need fewer products ``X W``,
small tiles cheaper transforms but more copies; the cheapest number of tiles is found by counting.
Sources: Lavin and Gray (2016), "Fast Algorithms for Convolutional Neural Networks"; Blahut (2010),
"Fast Algorithms for Signal Processing", chapter 5, also for points outside the rationals.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from capsjax.backend import materialize, typical_size
from capsjax.precision import product

# The number of multiplications in a matrix product that take as long as copying a sample and, in
# the backward pass, its gradient. This number and the weights in :func:`cost` are fitted to the
# gradients of two dozen layers on 2 cores with AVX-512 and JAX 0.12, with errors of an eighth.
COPY = 75
# Numerators and denominators of the points 0, infinity, 1, -1, 1/2 and -2.
REAL = ((0, 1), (1, 0), (1, 1), (-1, 1), (0.5, 1), (1, -0.5))


class _Axis(NamedTuple):
    """Sizes of one stride phase along one axis of the image."""

    tiles: int  # number of tiles
    out: int  # number of outputs of a tile
    kernel: int  # number of kernel taps
    length: int  # number of samples that a tile needs, and of points

    @property
    def samples(self) -> int:
        """The number of samples of all tiles, which overlap."""
        return self.out * (self.tiles - 1) + self.length


def convolve(
    x: chex.Array, w: chex.Array, stride: int, tiles: tuple[int, int] | None = None
) -> jax.Array:
    """Compute a valid cross-correlation, see :func:`capsjax.conv2d`.

    Args:
      x: images ``[B, H, W, C]``.
      w: kernels ``[k, k, C, O]``, square.
      stride: step in both directions.
      tiles: largest numbers of tiles along height and width; None chooses the cheapest.
    """
    B, H, W, C = x.shape
    k, _, _, O = w.shape
    h, v = _axes(x.shape, w.shape, stride, tiles or _cheapest(x.shape, w.shape, stride))
    x = _by_phase(x, 1, (h.samples, v.samples), stride).transpose(1, 3, 0, 2, 4, 5)
    x = _cut(x.reshape(h.samples, v.samples, B, stride * stride * C), h, v)
    w = _by_phase(w, 0, (h.kernel, v.kernel), stride).transpose(0, 2, 1, 3, 4, 5)
    w = materialize(w).reshape(h.kernel * v.kernel, stride * stride * C, O)
    image, kernel, result = (jnp.asarray(m, x.dtype) for m in _transforms(h, v))
    x, w = product(image, x, "pn,nbc->pbc"), product(kernel, w, "pn,nco->pco")
    y = product(result, product(x, w, "pbc,pco->pbo"), "np,pbo->nbo")
    y = y.reshape(h.out, v.out, h.tiles, v.tiles, B, O)
    y = y.transpose(4, 2, 0, 3, 1, 5).reshape(B, h.tiles * h.out, v.tiles * v.out, O)
    return y[:, : (H - k) // stride + 1, : (W - k) // stride + 1]


def cost(
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    stride: int,
    tiles: tuple[int, int] | None = None,
) -> int:
    """Estimate the time with gradients, in multiplications of a matrix product.

    Args:
      x_shape: ``[B, H, W, C]`` of the images.
      w_shape: ``[k, k, C, O]`` of the kernels.
      stride: step in both directions.
      tiles: largest numbers of tiles along height and width; None takes the cheapest.
    """
    if tiles is None:
        return cost(x_shape, w_shape, stride, _cheapest(x_shape, w_shape, stride))
    h, v = _axes(x_shape, w_shape, stride, tiles)
    images, channels, outputs = x_shape[0] * h.tiles * v.tiles, x_shape[3] * stride**2, w_shape[3]
    image = h.length * v.length * channels * images
    kernel = h.kernel * v.kernel * channels * outputs
    # Kernels are transformed at less than half the speed. The last term is for copying Y.
    products = channels * outputs * images + image + 5 * kernel // 2 + COPY * outputs * images
    return _products(h, v) * products + COPY * (image + kernel)


def _cheapest(x_shape, w_shape, stride) -> tuple[int, int]:
    def numbers(size):
        """List the numbers of tiles that differ in the size of a tile."""
        outputs = (size - w_shape[0]) // stride + 1
        return sorted({-(-outputs // out) for out in range(1, outputs + 1)})

    x_shape = (typical_size(x_shape[0]), *x_shape[1:])
    every = itertools.product(*map(numbers, x_shape[1:3]))
    return min(every, key=lambda tiles: cost(x_shape, w_shape, stride, tiles))


def _axes(x_shape, w_shape, stride, tiles) -> tuple[_Axis, _Axis]:
    def axis(size, tiles):
        outputs = (size - w_shape[0]) // stride + 1
        out = -(-outputs // tiles)
        kernel = -(-w_shape[0] // stride)
        return _Axis(-(-outputs // out), out, kernel, out + kernel - 1)

    return axis(x_shape[1], tiles[0]), axis(x_shape[2], tiles[1])


def _by_phase(x, axis, sizes, stride):
    """Split two axes of x into ``[size, stride]`` each, padded or cut to the sizes."""
    # A negative width cuts off samples, which no output needs. Outputs from padding are cut off.
    missing = [stride * size - n for size, n in zip(sizes, x.shape[axis:])]
    widths = [0] * axis + missing + [0] * (x.ndim - axis - 2)
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, width, 0) for width in widths])
    height, width = sizes
    return x.reshape(*x.shape[:axis], height, stride, width, stride, *x.shape[axis + 2 :])


def _cut(x, h, v):
    """Cut ``[samples, samples, B, C]`` into overlapping tiles ``[length length, tiles B, C]``."""
    tiles = [
        x[h.out * m : h.out * m + h.length, v.out * n : v.out * n + v.length]
        for m, n in np.ndindex(h.tiles, v.tiles)
    ]
    return jnp.stack(tiles, 2).reshape(h.length * v.length, -1, x.shape[-1])


def _real_and_pairs(length: int) -> tuple[int, int]:
    """Return the number of real points and the number of pairs of conjugate points."""
    pairs = max(0, -(-(length - len(REAL)) // 2))
    return length - 2 * pairs, pairs


def _products(h: _Axis, v: _Axis) -> int:
    """Return the number P of matrix products."""
    real = _real_and_pairs(h.length)[0] * _real_and_pairs(v.length)[0]
    return real + 3 * (h.length * v.length - real) // 2


@functools.cache
def _transforms(h: _Axis, v: _Axis) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make the transforms of image, kernel and result, in float64.

    If the values of image and kernel at a point are a + ib and c + id, that of the result is
    (ac - bd) + i(ad + bc), where ad + bc = (a + b)(c + d) - ac - bd.

    Returns:
      Matrices ``[P, length length]``, ``[P, kernel kernel]`` and ``[out out, P]``.
    """
    (rows, row_mirror), (columns, column_mirror) = _matrices(h), _matrices(v)
    image, kernel, result = map(np.kron, rows, columns)
    mirror = (row_mirror[:, None] * v.length + column_mirror).ravel()
    place = np.arange(len(mirror))
    own, other = place == mirror, place < mirror

    def factors(m):
        a, b = m[other].real, m[other].imag
        return np.concatenate([m[own].real, a, b, a + b])

    # One point of each pair is computed: the sum over both is twice the real part.
    c, s = 2 * result[other].real, 2 * result[other].imag
    result = np.concatenate([result[own].real, c + s, s - c, -s])
    return factors(image), factors(kernel), result.T


def _matrices(axis: _Axis) -> tuple[list[np.ndarray], np.ndarray]:
    """Make complex ``V_length^-T, V_kernel, V_out``, and the index of each point's conjugate."""
    real, pairs = _real_and_pairs(axis.length)
    angles = np.pi * np.arange(1, pairs + 1) / (pairs + 1)
    upper = np.exp(0.5j * np.outer(angles, [1, -1]))
    points = np.concatenate([np.reshape(REAL[:real], (-1, 2)), upper, upper.conj()])

    def powers(n):
        return points[:, :1] ** np.arange(n) * points[:, 1:] ** np.arange(n)[::-1]

    matrices = [np.linalg.inv(powers(axis.length)).T, powers(axis.kernel), powers(axis.out)]
    return matrices, np.r_[:real, real + pairs : axis.length, real : real + pairs]
