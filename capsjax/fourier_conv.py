"""Convolution by the convolution theorem, in matrix products that a CPU is fast at.

Image and kernel are split by stride phase, which leaves stride-1 correlations of short kernels, and
the results cut into tiles, each of which needs ``length = out + kernel - 1`` samples of a phase
along an axis:

====== ==================================== =====================================================
array  layout                               what it is
====== ==================================== =====================================================
x      ``[length length, B tiles, c]``      tiles of the images, channels c of all phases
w      ``[kernel kernel, c, O]``            the kernel
X, W   ``[P, B tiles, c]``, ``[P, c, O]``   their exact discrete Fourier transforms, real numbers
Y      ``[P, B tiles, O]``                  P matrix products, which sum over phases and channels
y      ``[out out, B tiles, O]``            what is transformed back
====== ==================================== =====================================================

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
        samples + h.kernel * v.kernel * channels * outputs + h.out * v.out * outputs * images
    )
    # Transforms run at half the speed, because they are narrow.
    products = channels * outputs * images + 2 * transforms
    return _points(h.length, v.length) * products + CUT * samples


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


def _frequencies(height: int, width: int):
    """One of each conjugate pair of frequencies, real ones first."""
    pairs = [(f, g) for f in range(height) for g in range(width)]
    mirror = {(f, g): (-f % height, -g % width) for f, g in pairs}
    real = [p for p in pairs if mirror[p] == p]
    return real, [p for p in pairs if p < mirror[p]]


def _points(height: int, width: int) -> int:
    """Real products per channel pair: one for a real frequency, three for a complex one."""
    real = (1 + (height % 2 == 0)) * (1 + (width % 2 == 0))
    return real + 3 * (height * width - real) // 2


@functools.cache
def _transforms(h: _Axis, w: _Axis) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matrices of the transforms of image, kernel and result, in float64.

    With X = a + ib the transform of the image and conj(W) = c + id that of the kernel,
    a complex product costs three real ones, p = ac, q = bd, r = (a + b)(c + d):
    its real part is p - q and its imaginary part r - p - q.

    Returns:
      image ``[P, L L]``, kernel ``[P, k k]`` and result ``[out out, P]`` matrices.
    """
    real, pairs = (np.array(f).reshape(-1, 2) for f in _frequencies(h.length, w.length))

    def angles(frequencies, height, width):
        y, x = np.divmod(np.arange(height * width), width)
        f, g = frequencies.T
        return 2 * np.pi * ((np.outer(f, y) / h.length + np.outer(g, x) / w.length) % 1)

    theta = angles(pairs, h.length, w.length)
    a, b = np.cos(theta), -np.sin(theta)
    image = np.concatenate([np.cos(angles(real, h.length, w.length)), a, b, a + b])
    theta = angles(pairs, h.kernel, w.kernel)
    c, d = np.cos(theta), np.sin(theta)
    kernel = np.concatenate([np.cos(angles(real, h.kernel, w.kernel)), c, d, c + d])
    theta = angles(pairs, h.out, w.out)
    cos, sin = np.cos(theta), np.sin(theta)
    result = np.concatenate(
        [np.cos(angles(real, h.out, w.out)), 2 * (cos + sin), 2 * (sin - cos), -2 * sin]
    )
    return image, kernel, result.T / (h.length * w.length)


# The derivative that JAX would derive is the same sums with their results the other way round,
# [c, o, n] for [n, c, o]: turning those round takes longer than the sums. It would also keep the
# transformed kernel, the largest array of all, which costs little to make again.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _correlate(h, v, x, w):
    """Stride-1 correlation ``[out out, B, O]`` of x ``[L L, B, c]`` with w ``[k k, c, O]``."""
    return _correlate_forward(h, v, x, w)[0]


def _correlate_forward(h, v, x, w):
    image, kernel, result = _matrices(h, v, x.dtype)
    X, W = product(image, x, "pn,nbc->pbc"), product(kernel, w, "pn,nco->pco")
    return product(result, product(X, W, "pbc,pco->pbo"), "np,pbo->nbo"), (X, w)


def _correlate_backward(h, v, kept, dy):
    X, w = kept
    image, kernel, result = _matrices(h, v, dy.dtype)
    dY, W = product(result, dy, "np,nbo->pbo"), product(kernel, w, "pn,nco->pco")
    dx = product(image, product(dY, W, "pbo,pco->pbc"), "pn,pbc->nbc")
    return dx, product(kernel, product(X, dY, "pbc,pbo->pco"), "pn,pco->nco")


_correlate.defvjp(_correlate_forward, _correlate_backward)


def _matrices(h, v, dtype):
    return (jnp.asarray(m, dtype) for m in _transforms(h, v))
