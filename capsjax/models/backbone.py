"""Parts of networks for larger images: a residual trunk, and a decoder that enlarges its image."""

from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp
from flax import nnx

from capsjax.plain_layers import LECUN_NORMAL, Conv
from capsjax.precision import accumulator

MakeNorm = Callable[[int], Callable[[jax.Array], jax.Array]]  # of a number of channels


class ResidualBlock(nnx.Module):
    r"""Two 3x3 convolutions with a way around them (He et al. 2016, "Deep residual learning").

    .. math:: y = \mathrm{ReLU}(N(K_2 \, \mathrm{ReLU}(N(K_1 x))) + s(x))

    N normalizes; s is the identity, or a normalized 1x1 convolution where channels or size change.

    Args:
      channels_in: number C of input channels. channels_out: number O of output channels.
      stride: of the first convolution, in pixels.
      make_norm: makes the normalization of a number of channels.
      conv: further arguments of :class:`capsjax.plain_layers.Conv`.
    """

    def __init__(
        self, channels_in: int, channels_out: int, stride: int, make_norm: MakeNorm, **conv
    ):
        conv = conv | {"padding": "SAME"}
        self.first = Conv(channels_in, channels_out, 3, stride=stride, **conv)
        self.first_norm = make_norm(channels_out)
        self.second = Conv(channels_out, channels_out, 3, **conv)
        self.second_norm = make_norm(channels_out)
        self.changes = stride != 1 or channels_in != channels_out
        if self.changes:
            self.around = Conv(channels_in, channels_out, 1, stride=stride, **conv)
            self.around_norm = make_norm(channels_out)

    def __call__(self, x: chex.Array) -> jax.Array:
        """Map ``[B, H, W, C]`` to ``[B, H', W', O]``, sizes divided by the stride, rounded up."""
        y = jax.nn.relu(self.first_norm(self.first(x)))
        y = self.second_norm(self.second(y))
        around = self.around_norm(self.around(x)) if self.changes else x
        return jax.nn.relu(y + around.astype(y.dtype)).astype(x.dtype)


class ResidualTrunk(nnx.Module):
    """Stages of residual blocks; the first block of a stage has its stride.

    Args:
      channels: number C of input channels.
      stages: the channels, the number of blocks and the stride of each stage.
      make_norm, conv: see :class:`ResidualBlock`.
    """

    def __init__(
        self,
        channels: int,
        stages: Sequence[tuple[int, int, int]],
        make_norm: MakeNorm,
        **conv,
    ):
        blocks = []
        for width, count, stride in stages:
            for n in range(count):
                blocks.append(ResidualBlock(channels, width, 1 if n else stride, make_norm, **conv))
                channels = width
        self.blocks = nnx.List(blocks)

    def __call__(self, x: chex.Array) -> jax.Array:
        """Map ``[B, H, W, C]`` to the features of the last stage."""
        for block in self.blocks:
            x = block(x)
        return x


class TransposedConv(nnx.Module):
    r"""A transposed convolution of kernel 2 and stride 2, which doubles height and width.

    .. math:: y_{2i+p, 2j+q, o} = \sum_c x_{ijc} K_{pqco} + b_o

    The squares of different input pixels do not overlap.

    Args:
      channels_in: C. channels_out: O.
      dtype: type of the computation; parameters stay float32.
      rngs: source of the initial parameters.
    """

    def __init__(self, channels_in: int, channels_out: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
        # Each output pixel is a weighted sum of C numbers.
        kernel = LECUN_NORMAL(rngs.params(), (channels_in, 4 * channels_out), jnp.float32)
        kernel = kernel.reshape(channels_in, 2, 2, channels_out).transpose(1, 2, 0, 3)
        self.kernel = nnx.Param(kernel)
        self.bias = nnx.Param(jnp.zeros(channels_out, jnp.float32))
        self.dtype = dtype

    def __call__(self, x: chex.Array) -> jax.Array:
        """Map ``[B, H, W, C]`` to ``[B, 2H, 2W, O]``."""
        B, H, W, _ = x.shape
        kernel = self.kernel[...].astype(self.dtype)
        y = jnp.einsum("bijc,pqco->bipjqo", x.astype(self.dtype), kernel)
        y = y.reshape(B, 2 * H, 2 * W, y.shape[-1])
        y = y.astype(accumulator(y.dtype)) + self.bias[...][None, None, None]
        return y.astype(self.dtype)


class TransposedDecoder(nnx.Module):
    """Transposed convolutions that reconstruct an image from masked capsules.

    A linear layer makes a small image with many channels. Each stage doubles its size and smooths
    it by a 3x3 convolution; what exceeds the image is cut off below and on the right.

    Args:
      inputs: number J * D of components of all class capsules.
      channels: of the small image and after each stage but the last; their number n is that of the
        stages, so that the small image is H / 2^n pixels high, rounded up.
      image_shape: (H, W, C) of the image. The last layer has a sigmoid.
      dtype: type of the computation; parameters stay float32.
      rngs: source of the initial parameters.
    """

    def __init__(
        self,
        inputs: int,
        channels: Sequence[int],
        image_shape: tuple[int, int, int],
        *,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        height, width, colours = image_shape
        share = 2 ** len(channels)
        self.small = (-(-height // share), -(-width // share), channels[0])
        common = {"dtype": dtype, "rngs": rngs}
        size = self.small[0] * self.small[1] * self.small[2]
        self.dense = nnx.Linear(inputs, size, **common)
        pairs = list(zip(channels, (*channels[1:], channels[-1])))
        self.enlarge = nnx.List(TransposedConv(m, n, **common) for m, n in pairs)
        widths = [*channels[1:], colours]
        self.smooth = nnx.List(
            Conv(n, width, 3, padding="SAME", **common)
            for (_, n), width in zip(pairs, widths, strict=True)
        )
        self.image_shape = image_shape

    def __call__(self, capsules: chex.Array) -> jax.Array:
        """Map masked capsules ``[B, J, D]`` to images ``[B, H, W, C]`` in [0, 1]."""
        chex.assert_rank(capsules, 3)
        x = self.dense(jax.lax.collapse(capsules, 1))
        x = x.reshape(x.shape[0], *self.small)
        for enlarge, smooth in zip(self.enlarge, self.smooth):
            x = smooth(jax.nn.relu(enlarge(jax.nn.relu(x))))
        height, width, _ = self.image_shape
        return jax.nn.sigmoid(x[:, :height, :width].astype(jnp.float32))
