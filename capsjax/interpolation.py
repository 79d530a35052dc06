r"""The transforms of a convolution by interpolation, along two axes.

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

Source: Blahut (2010), "Fast Algorithms for Signal Processing", chapter 5, also for points outside
the rationals.
"""

import functools
from typing import NamedTuple

import numpy as np

# Numerators and denominators of the points 0, infinity, 1, -1, 1/2 and -2.
REAL = ((0, 1), (1, 0), (1, 1), (-1, 1), (0.5, 1), (1, -0.5))


class Axis(NamedTuple):
    """Sizes of one stride phase along one axis of the image."""

    tiles: int  # number of tiles
    out: int  # number of outputs of a tile
    kernel: int  # number of kernel taps
    length: int  # number of samples that a tile needs, and of points

    @property
    def samples(self) -> int:
        """The number of samples of all tiles, which overlap."""
        return self.out * (self.tiles - 1) + self.length


def count_products(h: Axis, v: Axis) -> int:
    """Return the number P of matrix products."""
    real = _real_and_pairs(h.length)[0] * _real_and_pairs(v.length)[0]
    return real + 3 * (h.length * v.length - real) // 2


@functools.cache
def transforms(h: Axis, v: Axis) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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


def _real_and_pairs(length: int) -> tuple[int, int]:
    """Return the number of real points and the number of pairs of conjugate points."""
    pairs = max(0, -(-(length - len(REAL)) // 2))
    return length - 2 * pairs, pairs


def _matrices(axis: Axis) -> tuple[list[np.ndarray], np.ndarray]:
    """Make complex ``V_length^-T, V_kernel, V_out``, and the index of each point's conjugate."""
    real, pairs = _real_and_pairs(axis.length)
    angles = np.pi * np.arange(1, pairs + 1) / (pairs + 1)
    upper = np.exp(0.5j * np.outer(angles, [1, -1]))
    points = np.concatenate([np.reshape(REAL[:real], (-1, 2)), upper, upper.conj()])

    def powers(n):
        return points[:, :1] ** np.arange(n) * points[:, 1:] ** np.arange(n)[::-1]

    matrices = [np.linalg.inv(powers(axis.length)).T, powers(axis.kernel), powers(axis.out)]
    return matrices, np.r_[:real, real + pairs : axis.length, real : real + pairs]
