"""Valid 2-D convolution, in the form that is fast on the backend at hand.

XLA's convolution is right on GPU and TPU, and slow on CPU: the gradient of CapsNet's
9x9, 256 -> 256, stride 2 layer takes 27 times as long as the same arithmetic as a matrix
product. On CPU two forms built from matrix products stand in for it:

* ``im2col``: gather the k x k patches, multiply once. Any size.
* ``fourier``: the convolution theorem. Split image and kernel by stride phase, which
  leaves stride-1 correlations of short length, transform both with an exact discrete
  Fourier transform written as a matrix, multiply frequency by frequency, transform back.
  Phases and channels are summed inside the product. A 9x9 stride-2 layer on 20x20 needs
  a fifth of the multiplications of the direct form.

All give the same values to rounding, and have gradients; ``fourier`` has a backward pass of its own
and therefore no forward-mode derivative (``jax.jvp``).
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from capsjax.backend import backend
from capsjax.precision import accumulator

IMPLEMENTATIONS = ("xla", "im2col", "fourier")
# Patches of so few channels are gathered a pixel of the kernel at a time, whole rows of the image
# in one piece: twice as fast for one channel, slower for 256.
FEW_CHANNELS = 4


def conv2d(
    x: chex.Array, w: chex.Array, stride: int = 1, *, implementation: str | None = None
) -> jax.Array:
    r"""Valid (unpadded) cross-correlation, what neural networks call a convolution.

    .. math:: y_{bhwo} = \sum_{ijc} x_{b,\,sh+i,\,sw+j,\,c} \, w_{ijco}

    Args:
      x: images ``[B, H, W, C]``.
      w: kernels ``[k, k, C, O]``, square.
      stride: the same step in both directions.
      implementation: ``xla``, ``im2col`` or ``fourier``; None chooses for the default
        backend and the sizes.

    Returns:
      ``[B, (H - k) // stride + 1, (W - k) // stride + 1, O]``, of the dtype of x.

    Raises:
      ValueError: unknown implementation, or an image smaller than the kernel.
      AssertionError: ranks or channels do not agree, or the kernel is not square.
    """
    chex.assert_rank([x, w], 4)
    B, H, W, C = x.shape
    k, _, _, O = w.shape
    chex.assert_shape(w, (k, k, C, O), custom_message=f"w must be [k, k, C, O], x is {x.shape}")
    if min(H, W) < k:
        raise ValueError(f"an image of {H}x{W} pixels is smaller than the {k}x{k} kernel")
    if implementation is None:
        implementation = _fastest(x.shape, w.shape, stride)
    if implementation == "xla":
        return lax.conv_general_dilated(
            x, w, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    if implementation == "im2col":
        return _im2col(x, w, stride)
    if implementation == "fourier":
        return _fourier(x, w, stride)
    raise ValueError(
        f"implementation must be one of {', '.join(IMPLEMENTATIONS)}, not {implementation!r}"
    )


def depthwise_conv2d(x: chex.Array, w: chex.Array, stride: int = 1) -> jax.Array:
    r"""Valid cross-correlation of every channel with a filter of its own.

    .. math:: y_{bhwc} = \sum_{ij} x_{b,\,sh+i,\,sw+j,\,c} \, w_{ij1c}

    Args:
      x: images ``[B, H, W, C]``. w: kernels ``[k, k, 1, C]``. stride: in both directions.

    Raises:
      AssertionError: ranks or channels do not agree.
    """
    chex.assert_rank([x, w], 4)
    k, C = w.shape[0], x.shape[3]
    chex.assert_shape(w, (k, k, 1, C), custom_message=f"w must be [k, k, 1, C], x is {x.shape}")
    if min(x.shape[1:3]) < k:
        raise ValueError(
            f"an image of {x.shape[1]}x{x.shape[2]} pixels is smaller than the {k}x{k} kernel"
        )
    # On CPU the gradient of a grouped convolution takes several times as long as that of this.
    patches = jnp.stack(_taps(x, k, stride, 1), axis=3)
    return _product(patches, w.reshape(k * k, C), "bhwpc,pc->bhwc")


def _fastest(x_shape, w_shape, stride) -> str:
    if backend() != "cpu":
        return "xla"
    B, H, W, C = x_shape
    k, _, _, O = w_shape
    h, w = _phase_sizes(H, k, stride), _phase_sizes(W, k, stride)
    channels = C * stride**2
    points = _points(h.length, w.length)
    transforms = (
        h.length * w.length * channels * B  # of the images
        + h.kernel * w.kernel * channels * O  # of the kernels
        + h.out * w.out * O * B  # of the results
    )
    direct = h.out * w.out * k * k * C * O * B
    # The sums of transforms are short, hence run at half the speed of the others.
    return "fourier" if points * (channels * O * B + 2 * transforms) < direct else "im2col"


def _product(a, b, spec):
    """einsum in the dtype of ``a``, accumulated in float32 or wider."""
    wide = jnp.einsum(spec, a, b, preferred_element_type=accumulator(a.dtype))
    return wide.astype(a.dtype)


def _taps(x, k, stride, axis):
    """For each pixel of the kernel what it sees, ``k k`` arrays; rows are ``axis`` of x."""
    rows = [range(i, x.shape[axis] - k + i + 1, stride) for i in range(k)]
    columns = [range(j, x.shape[axis + 1] - k + j + 1, stride) for j in range(k)]

    def pick(x, places, axis):
        return lax.slice_in_dim(x, places[0], places[-1] + 1, stride, axis)

    return [pick(pick(x, row, axis), column, axis + 1) for row in rows for column in columns]


def _im2col(x, w, stride):
    k, _, C, O = w.shape
    if C > FEW_CHANNELS:
        patches = jnp.stack(_taps(x, k, stride, 1), axis=3)
        patches = patches.reshape(*patches.shape[:3], k * k * C)
        return _product(patches, w.reshape(k * k * C, O), "bhwp,po->bhwo")
    patches = jnp.stack(_taps(x.transpose(3, 0, 1, 2), k, stride, 2))
    return _product(patches, w.reshape(k * k, C, O), "pcbhw,pco->bhwo")


class _PhaseSizes(NamedTuple):
    """Sizes along one image axis after splitting it by stride phase."""

    out: int  # outputs
    kernel: int  # kernel taps of one phase
    length: int  # input samples of one phase, and the length of the transform


def _phase_sizes(size: int, k: int, stride: int) -> _PhaseSizes:
    out = (size - k) // stride + 1
    kernel = -(-k // stride)
    return _PhaseSizes(out, kernel, out + kernel - 1)


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
def _transforms(h: _PhaseSizes, w: _PhaseSizes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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


def _fourier(x, w, stride):
    B, H, W, C = x.shape
    k, _, _, O = w.shape
    h, v = _phase_sizes(H, k, stride), _phase_sizes(W, k, stride)

    # Crop or pad to whole phases; samples beyond the last output never matter.
    y0, x0 = stride * h.length, stride * v.length
    x = x[:, :y0, :x0]
    x = jnp.pad(x, ((0, 0), (0, y0 - x.shape[1]), (0, x0 - x.shape[2]), (0, 0)))
    x = x.reshape(B, h.length, stride, v.length, stride, C).transpose(1, 3, 0, 2, 4, 5)
    x = x.reshape(h.length * v.length, B, stride * stride * C)
    w = jnp.pad(w, ((0, stride * h.kernel - k), (0, stride * v.kernel - k), (0, 0), (0, 0)))
    w = w.reshape(h.kernel, stride, v.kernel, stride, C, O).transpose(0, 2, 1, 3, 4, 5)
    w = w.reshape(h.kernel * v.kernel, stride * stride * C, O)
    y = _correlate(h, v, x, w)
    return y.reshape(h.out, v.out, B, O).transpose(2, 0, 1, 3)


# The derivative that JAX would derive is the same sums with their results the other way round,
# [c, o, n] for [n, c, o]: turning those round takes longer than the sums. It would also keep the
# transformed kernel, the largest array of all, which costs little to make again.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _correlate(h, v, x, w):
    """Stride-1 correlation ``[out out, B, O]`` of x ``[L L, B, c]`` with w ``[k k, c, O]``."""
    return _correlate_forward(h, v, x, w)[0]


def _correlate_forward(h, v, x, w):
    image, kernel, result = _matrices(h, v, x.dtype)
    X, W = _product(image, x, "pn,nbc->pbc"), _product(kernel, w, "pn,nco->pco")
    return _product(result, _product(X, W, "pbc,pco->pbo"), "np,pbo->nbo"), (X, w)


def _correlate_backward(h, v, kept, dy):
    X, w = kept
    image, kernel, result = _matrices(h, v, dy.dtype)
    dY, W = _product(result, dy, "np,nbo->pbo"), _product(kernel, w, "pn,nco->pco")
    dx = _product(image, _product(dY, W, "pbo,pco->pbc"), "pn,pbc->nbc")
    return dx, _product(kernel, _product(X, dY, "pbc,pbo->pco"), "pn,pco->nco")


_correlate.defvjp(_correlate_forward, _correlate_backward)


def _matrices(h, v, dtype):
    return (jnp.asarray(m, dtype) for m in _transforms(h, v))
