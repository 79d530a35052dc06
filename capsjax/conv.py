"""Valid 2-D convolution, in the form that is fast on the backend at hand.

XLA's convolution is right on GPU and TPU, and slow on CPU: the gradient of CapsNet's
9x9, 256 -> 256, stride 2 layer takes 27 times as long as the same arithmetic as a matrix
product. On CPU two forms built from matrix products stand in for it:

* ``im2col``: gather the k x k patches, multiply once. Any size.
* ``winograd``: by interpolation, see :mod:`capsjax.winograd`. A 9x9 stride-2 layer on 20x20
  needs a fifth of the multiplications of the direct form.

All give the same values to rounding, and have gradients; those for CPU have a backward pass of
their own and therefore no forward-mode derivative (``jax.jvp``).
"""

import chex
import jax
import jax.numpy as jnp
from jax import lax

from capsjax import winograd
from capsjax.backend import backend
from capsjax.precision import product

IMPLEMENTATIONS = ("xla", "im2col", "winograd")
# Patches of so few channels are gathered with the pixels of the kernel first and those of the image
# last, whole rows of it in one piece: twice as fast for one channel, slower for 256.
FEW_CHANNELS = 4
# Multiplications that take as long as gathering one sample of a patch, and adding up its gradient:
# what makes the forms equal where patches fit into the cache. Of many patches it is up to 200.
GATHER = 125


def conv2d(
    x: chex.Array, w: chex.Array, stride: int = 1, *, implementation: str | None = None
) -> jax.Array:
    r"""Valid (unpadded) cross-correlation, what neural networks call a convolution.

    .. math:: y_{bhwo} = \sum_{ijc} x_{b,\,sh+i,\,sw+j,\,c} \, w_{ijco}

    Args:
      x: images ``[B, H, W, C]``.
      w: kernels ``[k, k, C, O]``, square.
      stride: the same step in both directions.
      implementation: ``xla``, ``im2col`` or ``winograd``; None chooses for the default
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
    if implementation == "winograd":
        return winograd.convolve(x, w, stride)
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
    patches = _patches(x, k, stride, 1, 3)
    return product(patches, w[:, :, 0], "bhwijc,ijc->bhwc")


def _fastest(x_shape, w_shape, stride) -> str:
    if backend() != "cpu":
        return "xla"
    B, H, W, C = x_shape
    k, _, _, O = w_shape
    patches = B * ((H - k) // stride + 1) * ((W - k) // stride + 1) * k * k * C
    im2col = patches * (O + (GATHER if C > FEW_CHANNELS else 0))
    return "winograd" if winograd.cost(x_shape, w_shape, stride) < im2col else "im2col"


def _patches(x, k, stride, rows, at):
    """What each pixel of the kernel sees, as axes ``k, k`` from axis ``at`` on.

    Rows of x are its axis ``rows``, columns the next one; ``at`` comes before or after both.
    """
    # Rows first: k + k slices, which compile much sooner than k k of them.
    x = _shifted(x, k, stride, rows, at)
    return _shifted(x, k, stride, rows + 1 + (at <= rows), at + 1)


def _shifted(x, k, stride, axis, at):
    """Every stride-th slice along an axis, from 0, 1, ... k - 1 on, stacked at axis ``at``."""
    last = x.shape[axis] - k + 1
    return jnp.stack([lax.slice_in_dim(x, i, last + i, stride, axis) for i in range(k)], at)


def _im2col(x, w, stride):
    k, _, C, O = w.shape
    if C > FEW_CHANNELS:
        patches = _patches(x, k, stride, 1, 3)
        patches = patches.reshape(*patches.shape[:3], k * k * C)
        return product(patches, w.reshape(k * k * C, O), "bhwp,po->bhwo")
    patches = _patches(x.transpose(3, 0, 1, 2), k, stride, 2, 0)
    return product(patches, w, "ijcbhw,ijco->bhwo")
