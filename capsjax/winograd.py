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

The transforms are matrices that depend only on the sizes. Large tiles need fewer products ``X W``,
small tiles cheaper transforms but more copies; the cheapest number of tiles is found by counting.
The transforms and their source are in :mod:`capsjax.interpolation`. Lavin and Gray (2016), "Fast
Algorithms for Convolutional Neural Networks", have the tiles.

Kernels of all phases are padded with zeros to one length. Without the padding a layer of 9 taps
with stride 2 has a tenth fewer products, but they are several short ones for each phase, and sums
of their results; steps of CapsNet take as long for 128 images, and with JAX 0.10.2 longer.
"""

import functools
import itertools
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from capsjax.backend import materialize, typical_size
from capsjax.interpolation import Axis, count_products, transforms
from capsjax.precision import product

# The number of multiplications in a matrix product that take as long as copying a sample and, in
# the backward pass, its gradient. This number and the weights in :func:`cost` are fitted to the
# gradients of two dozen layers on 2 cores with AVX-512 and JAX 0.12, with errors of an eighth.
COPY = 75


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
    w = _by_phase(w, 0, (h.kernel, v.kernel), stride).transpose(0, 2, 1, 3, 4, 5)
    # Before axes are merged: loops over merged axes are not vectorized.
    x, w = materialize((_cut(x, h, v), w))
    x = x.reshape(h.length * v.length, -1, stride * stride * C)
    w = w.reshape(h.kernel * v.kernel, stride * stride * C, O)
    y = _correlate((h, v), x, w)
    y = y.reshape(h.out, v.out, h.tiles, v.tiles, B, O)
    y = y.transpose(4, 2, 0, 3, 1, 5).reshape(B, h.tiles * h.out, v.tiles * v.out, O)
    return y[:, : (H - k) // stride + 1, : (W - k) // stride + 1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _correlate(axes, x, w):
    """Compute the outputs of all tiles ``[out out, B tiles, O]`` from x and w, as listed above.

    The backward pass is written out for the order of the operands. XLA's CPU backend is fast at
    sums over the last axis of the first operand; sums over another axis take up to twice as long,
    in bfloat16 three times. So the transforms are transposed in advance, and so is one operand of
    the gradient by W, see :func:`_kernel_gradient`.
    """
    return _correlate_forward(axes, x, w)[0]


def _correlate_forward(axes, x, w):
    image, kernel, result = (jnp.asarray(m, x.dtype) for m in transforms(*axes))
    X, W = product(image, x, "pn,nbc->pbc"), product(kernel, w, "pn,nco->pco")
    return product(result, product(X, W, "pbc,pco->pbo"), "np,pbo->nbo"), (X, W)


def _correlate_backward(axes, residuals, dy):
    X, W = residuals
    image, kernel, result = (jnp.asarray(m.T, X.dtype) for m in transforms(*axes))
    dY = product(result, dy, "pn,nbo->pbo")
    dx = product(image, product(dY, W, "pbo,pco->pbc"), "np,pbc->nbc")
    return dx, _kernel_gradient(kernel, X, dY)


def _kernel_gradient(kernel, X, dY):
    """Compute the gradient ``[kernel kernel, C, O]``.

    Transposing dY gives ``[P, O, C]``, which is transposed once it is transformed back; transposing
    X gives ``[P, C, O]``. The cheaper one is taken, where what is transposed last, and read once
    more, counts twice, as measured.
    """
    (P, rows, C), O = X.shape, dY.shape[2]
    if P * typical_size(rows) * (C - O) < 2 * len(kernel) * C * O:
        dW = product(materialize(X.transpose(0, 2, 1)), dY, "pcb,pbo->pco")
        return product(kernel, dW, "np,pco->nco")
    dW = product(materialize(dY.transpose(0, 2, 1)), X, "pob,pbc->poc")
    return product(kernel, dW, "np,poc->noc").transpose(0, 2, 1)


_correlate.defvjp(_correlate_forward, _correlate_backward)


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
    return count_products(h, v) * products + COPY * (image + kernel)


def _cheapest(x_shape, w_shape, stride) -> tuple[int, int]:
    def numbers(size):
        """List the numbers of tiles that differ in the size of a tile."""
        outputs = (size - w_shape[0]) // stride + 1
        return sorted({-(-outputs // out) for out in range(1, outputs + 1)})

    x_shape = (typical_size(x_shape[0]), *x_shape[1:])
    every = itertools.product(*map(numbers, x_shape[1:3]))
    return min(every, key=lambda tiles: cost(x_shape, w_shape, stride, tiles))


def _axes(x_shape, w_shape, stride, tiles) -> tuple[Axis, Axis]:
    def axis(size, tiles):
        outputs = (size - w_shape[0]) // stride + 1
        out = -(-outputs // tiles)
        kernel = -(-w_shape[0] // stride)
        return Axis(-(-outputs // out), out, kernel, out + kernel - 1)

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
    """Cut ``[samples, samples, ...]`` into overlapping tiles ``[length, length, tiles, ...]``."""
    tiles = [
        x[h.out * m : h.out * m + h.length, v.out * n : v.out * n + v.length]
        for m, n in np.ndindex(h.tiles, v.tiles)
    ]
    return jnp.stack(tiles, 2)
