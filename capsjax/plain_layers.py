"""Layers without capsules: the convolution, pooling, and the decoder of class capsules."""

import math
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
from flax import nnx

from capsjax.conv import conv2d, depthwise_conv2d
from capsjax.precision import accumulator
from capsjax.routing import check_choice

Initializer = jax.nn.initializers.Initializer
LECUN_NORMAL = jax.nn.initializers.lecun_normal()
PADDINGS = ("VALID", "SAME")


class Conv(nnx.Module):
    """A 2-D convolution with a square kernel, computed by :func:`capsjax.conv.conv2d`.

    Args:
      channels_in: number C of input channels.
      channels_out: number O of output channels.
      kernel: side k of the kernel, in pixels.
      stride: step in both directions, in pixels.
      padding: ``VALID`` for none, or ``SAME`` for zeros, so that the output has the size of the
        input divided by the stride, rounded up. An odd row or column of zeros comes last.
      scale: factor on the weighted sum before the bias is added.
      depthwise: whether each output channel sees only the input channel of the same index. Then
        O = C, and the kernel is ``[k, k, 1, C]``.
      kernel_init: initializer of the kernel ``[k, k, C, O]``.
      bias_init: initializer of the bias ``[O]``; None: no bias.
      dtype: type of the computation; parameters stay float32.
      rngs: source of the initial parameters.

    Raises:
      ValueError: the padding is unknown, or a depthwise convolution would change the channels.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: str = "VALID",
        scale: float = 1.0,
        depthwise: bool = False,
        kernel_init: Initializer = LECUN_NORMAL,
        bias_init: Initializer | None = jax.nn.initializers.zeros,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_choice("padding", padding, PADDINGS)
        if depthwise and channels_in != channels_out:
            raise ValueError(f"depthwise: {channels_in} channels can't become {channels_out}")
        shape = (kernel, kernel, 1 if depthwise else channels_in, channels_out)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, jnp.float32))
        bias = bias_init and bias_init(rngs.params(), (channels_out,), jnp.float32)
        self.bias = None if bias is None else nnx.Param(bias)
        self.stride, self.padding, self.scale, self.dtype = stride, padding, scale, dtype
        self.depthwise = depthwise

    def __call__(self, x: chex.Array) -> jax.Array:
        """Map images ``[B, H, W, C]`` to ``[B, H', W', O]``."""
        chex.assert_rank(x, 4)
        kernel = self.kernel[...]
        if self.padding == "SAME":
            widths = []
            for size in x.shape[1:3]:
                zeros = (-(-size // self.stride) - 1) * self.stride + kernel.shape[0] - size
                low = max(zeros, 0) // 2
                widths.append((low, max(zeros, 0) - low))
            x = jnp.pad(x, ((0, 0), *widths, (0, 0)))
        convolve = depthwise_conv2d if self.depthwise else conv2d
        y = convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)
        # In float32, because the gradient of the bias is a sum over all pixels.
        y = self.scale * y.astype(accumulator(y.dtype))
        if self.bias is not None:
            y += self.bias[...][None, None, None]
        return y.astype(self.dtype)


def max_pool(x: chex.Array) -> jax.Array:
    """Take the maximum over windows of 2x2 pixels; an odd last row or column is dropped.

    The gradient goes to the first of equal pixels, row by row, and NaN to every output that sees
    it, as with ``flax.nnx.max_pool``, of which XLA computes the gradient in a slow loop over pixels
    on a CPU.

    Args:
      x: images ``[B, H, W, C]``.

    Returns:
      Images ``[B, H // 2, W // 2, C]``.
    """
    chex.assert_rank(x, 4)

    def larger(first, second):
        return jnp.where((second > first) | (second != second), second, first)

    B, H, W, C = x.shape
    x = x[:, : H // 2 * 2, : W // 2 * 2].reshape(B, H // 2, 2, W // 2, 2, C)
    x = larger(x[:, :, :, :, 0], x[:, :, :, :, 1])
    return larger(x[:, :, 0], x[:, :, 1])


class Decoder(nnx.Module):
    """Fully connected layers that reconstruct an image from masked capsules.

    Args:
      inputs: number J * D of components of all class capsules.
      hidden: widths of the hidden layers, which have ReLUs.
      image_shape: (H, W, C) of the image. The last layer has a sigmoid.
      last_kernel_init: initializer of the kernel of the last layer; None: that of the others.
      linear: further arguments of ``nnx.Linear``.
    """

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        image_shape: tuple[int, int, int],
        *,
        last_kernel_init: Initializer | None = None,
        **linear,
    ):
        sizes = (inputs, *hidden, math.prod(image_shape))
        options = [linear] * (len(sizes) - 1)
        if last_kernel_init is not None:
            options[-1] = linear | {"kernel_init": last_kernel_init}
        self.layers = nnx.List(
            nnx.Linear(m, n, **each) for m, n, each in zip(sizes, sizes[1:], options)
        )
        self.image_shape = image_shape

    def __call__(self, capsules: chex.Array) -> jax.Array:
        """Map masked capsules ``[B, J, D]`` to images ``[B, H, W, C]`` in [0, 1]."""
        chex.assert_rank(capsules, 3)
        x = jax.lax.collapse(capsules, 1)
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        pixels = jax.nn.sigmoid(self.layers[-1](x).astype(jnp.float32))
        return pixels.reshape(pixels.shape[0], *self.image_shape)
