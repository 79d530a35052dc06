"""Valid 2-D convolution, in the implementation that is fastest on the backend.

XLA's convolution is fast on GPU and TPU, and slow on CPU: the gradient of CapsNet's 9x9,
256 -> 256, stride 2 layer takes 27 times as long as the same arithmetic in a matrix product. On CPU
it is replaced by one of two implementations that consist of matrix products:

* ``im2col`` gathers the k x k patches and multiplies once.
* ``winograd`` interpolates, see :mod:`capsjax.winograd`. For a 9x9 layer with stride 2 on 20x20
  pixels it needs a fifth of the multiplications of the direct form.

All implementations give the same values up to rounding and are differentiable. Those for CPU define
their own backward pass and therefore have no forward-mode derivative (``jax.jvp``).
"""

import chex
import jax
import jax.numpy as jnp
from jax import lax

from capsjax import winograd
from capsjax.backend import backend, typical_size
from capsjax.precision import product

IMPLEMENTATIONS = ("xla", "im2col", "winograd")
# Up to this number of channels, patches are gathered with the pixels of the kernel as first axes
# and those of the image as last ones, so that whole rows are copied: twice as fast for one channel,
# slower for 256.
FEW_CHANNELS = 4
# The number of multiplications that take as long as gathering one sample of a patch and adding up
# its gradient. It was measured where patches fit into the cache; for many patches it is up to 200.
GATHER = 125


def conv2d(
    x: chex.Array, w: chex.Array, stride: int = 1, *, implementation: str | None = None
) -> jax.Array:
    r"""Compute a valid (unpadded) cross-correlation, called convolution in neural networks.

    .. math:: y_{bhwo} = \sum_{ijc} x_{b,\,sh+i,\,sw+j,\,c} \, w_{ijco}

    Args:
      x: images ``[B, H, W, C]``.
      w: kernels ``[k, k, C, O]``, square.
      stride: step in both directions.
      implementation: ``xla``, ``im2col`` or ``winograd``; None chooses by the backend and the
        sizes.

    Returns:
      ``[B, (H - k) // stride + 1, (W - k) // stride + 1, O]``, of the dtype of x.

    Raises:
      ValueError: the implementation is unknown, or the image is smaller than the kernel.
      TypeError: images or kernels are not floats.
      AssertionError: the ranks are not 4, the channels differ, or the kernel is not square.
    """
    chex.assert_rank([x, w], 4)
    for what, array in (("images", x), ("kernels", w)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{what} must be floats, not {array.dtype}")
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
    if implementation == "winograd":
        return winograd.convolve(x, w, stride)
    raise ValueError(
        f"implementation must be one of {', '.join(IMPLEMENTATIONS)}, not {implementation!r}"
    )


def depthwise_conv2d(x: chex.Array, w: chex.Array, stride: int = 1) -> jax.Array:
    r"""Compute the valid cross-correlation of each channel with its own filter.

    .. math:: y_{bhwc} = \sum_{ij} x_{b,\,sh+i,\,sw+j,\,c} \, w_{ij1c}

    Args:
      x: images ``[B, H, W, C]``.
      w: kernels ``[k, k, 1, C]``, square.
      stride: step in both directions.

    Raises:
      ValueError: the image is smaller than the kernel.
      AssertionError: the ranks are not 4, the channels differ, or the kernel is not square.
    """
    chex.assert_rank([x, w], 4)
    k, C = w.shape[0], x.shape[3]
    chex.assert_shape(w, (k, k, 1, C), custom_message=f"w must be [k, k, 1, C], x is {x.shape}")
    if min(x.shape[1:3]) < k:
        raise ValueError(
            f"an image of {x.shape[1]}x{x.shape[2]} pixels is smaller than the {k}x{k} kernel"
        )
    # On CPU the gradient of XLA's grouped convolution takes several times as long.
    patches = _patches(x, k, stride, 1, 3)
    return product(patches, w[:, :, 0], "bhwijc,ijc->bhwc")


def _fastest(x_shape, w_shape, stride) -> str:
    """Choose the implementation by the backend and by counts of operations."""
    if backend() != "cpu":
        return "xla"
    B, H, W, C = x_shape = (typical_size(x_shape[0]), *x_shape[1:])
    k, _, _, O = w_shape
    patches = B * ((H - k) // stride + 1) * ((W - k) // stride + 1) * k * k * C
    im2col = patches * (O + (GATHER if C > FEW_CHANNELS else 0))
    return "winograd" if winograd.cost(x_shape, w_shape, stride) < im2col else "im2col"


def _patches(x, k, stride, rows, at):
    """Gather the samples below each pixel of the kernel, as new axes ``k, k`` from ``at`` on.

    Axis ``rows`` of x holds the rows of the image and the next one the columns; ``at`` is a place
    before or after both.
    """
    # Rows, then columns: k + k slices compile much faster than k * k.
    x = _shifted(x, k, stride, rows, at)
    return _shifted(x, k, stride, rows + 1 + (at <= rows), at + 1)


def _shifted(x, k, stride, axis, at):
    """Stack k strided slices of an axis, which start at 0, 1, ... k - 1, at axis ``at``."""
    last = x.shape[axis] - k + 1
    return jnp.stack([lax.slice_in_dim(x, i, last + i, stride, axis) for i in range(k)], at)


def _im2col(x, w, stride):
    """Compute the convolution as one product of patches and kernels."""
    k, _, C, O = w.shape
    if C > FEW_CHANNELS:
        patches = _patches(x, k, stride, 1, 3)
        patches = patches.reshape(*patches.shape[:3], k * k * C)
        return product(patches, w.reshape(k * k * C, O), "bhwp,po->bhwo")
    patches = _patches(x.transpose(3, 0, 1, 2), k, stride, 2, 0)
    return product(patches, w, "ijcbhw,ijco->bhwo")
