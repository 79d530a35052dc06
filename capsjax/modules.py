"""Flax NNX modules around the equations. They own parameters and nothing else.

Modules take a batch. They hold no random state and no running statistics, so that
:mod:`capsjax.functional` can treat them as pure functions of their parameters.
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
from flax import nnx

from capsjax.conv import conv2d
from capsjax.precision import accumulator
from capsjax.routing import RoutingOutput, Sweeps, route
from capsjax.squash import squash

Initializer = jax.nn.initializers.Initializer
LECUN_NORMAL = jax.nn.initializers.lecun_normal()
NORMAL = jax.nn.initializers.normal(0.1)


class Conv(nnx.Module):
    """2-D convolution with a square kernel, computed by :func:`capsjax.conv.conv2d`.

    Args:
      channels_in: C. channels_out: O.
      kernel: side k of the kernel in pixels. stride: step in pixels.
      padding: ``VALID`` (none) or ``SAME`` (zeros, output as large as the input; stride 1).
      scale: factor on the weighted sum before the bias.
      kernel_init, bias_init: initialisers of kernel ``[k, k, C, O]`` and bias ``[O]``.
      dtype: computation type; parameters stay float32.
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
        kernel_init: Initializer = LECUN_NORMAL,
        bias_init: Initializer = jax.nn.initializers.zeros,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        if padding not in ("VALID", "SAME") or (padding == "SAME" and stride != 1):
            raise ValueError(f"padding must be VALID, or SAME with stride 1, not {padding!r}")
        shape = (kernel, kernel, channels_in, channels_out)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(bias_init(rngs.params(), (channels_out,), jnp.float32))
        self.stride, self.padding, self.scale, self.dtype = stride, padding, scale, dtype

    def __call__(self, x: chex.Array) -> jax.Array:
        """Map ``[B, H, W, C]`` to ``[B, H', W', O]``."""
        kernel = self.kernel[...]
        if self.padding == "SAME":
            low = (kernel.shape[0] - 1) // 2
            high = kernel.shape[0] - 1 - low
            x = jnp.pad(x, ((0, 0), (low, high), (low, high), (0, 0)))
        y = conv2d(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)
        # In float32, because the gradient of the bias is a sum over all pixels.
        y = self.scale * y.astype(accumulator(y.dtype)) + self.bias[...][None, None, None]
        return y.astype(self.dtype)


class PrimaryCapsules(nnx.Module):
    """The lowest capsule layer: a convolution whose channels are cut into pose vectors.

    Neighbouring channels form a capsule: channel ``type * pose + k`` is component k of
    the capsule of that type, at every position of the grid.

    Args:
      channels_in: channels of the feature map. types: capsule types.
      pose: pose size K. kernel, stride: of the convolution, in pixels.
      conv: further arguments of :class:`Conv`.
    """

    def __init__(self, channels_in: int, types: int, pose: int, kernel: int, stride: int, **conv):
        self.conv = Conv(channels_in, types * pose, kernel, stride=stride, **conv)
        self.pose = pose

    def __call__(self, x: chex.Array) -> jax.Array:
        """Map a feature map ``[B, H, W, C]`` to capsules ``[B, I, K]``, I = H' W' types."""
        features = self.conv(x)
        return squash(features.reshape(features.shape[0], -1, self.pose))


class RoutedCapsules(nnx.Module):
    """A capsule layer whose inputs are coupled to its outputs by routing.

    Args:
      capsules_in: I. pose_in: K. capsules_out: J. pose_out: D.
      iterations, gradient, implementation: see :func:`capsjax.routing.route`.
      kernel_init: initialiser of the transformation matrices ``[I, J, D, K]``.
      bias_init: initialiser of the bias ``[J, D]`` of s_j; None for no bias.
      dtype: type in which votes are multiplied (they are summed in float32).
    """

    def __init__(
        self,
        capsules_in: int,
        pose_in: int,
        capsules_out: int,
        pose_out: int,
        *,
        iterations: int = 3,
        gradient: str = "full",
        implementation: str | Sweeps = "auto",
        kernel_init: Initializer = NORMAL,
        bias_init: Initializer | None = None,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        shape = (capsules_in, capsules_out, pose_out, pose_in)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, jnp.float32))
        if bias_init is not None:
            self.bias = nnx.Param(bias_init(rngs.params(), shape[1:3], jnp.float32))
        self.options = {
            "iterations": iterations,
            "gradient": gradient,
            "implementation": implementation,
        }
        self.use_bias, self.dtype = bias_init is not None, dtype

    def __call__(self, u: chex.Array) -> RoutingOutput:
        """Map capsules ``[B, I, K]`` to a batch of :class:`RoutingOutput`."""
        W = self.kernel[...].astype(self.dtype)
        bias = self.bias[...] if self.use_bias else None
        return route(u.astype(self.dtype), W, bias=bias, **self.options)


class Decoder(nnx.Module):
    """Fully connected layers that draw an image from masked capsules.

    Args:
      inputs: J * D numbers. hidden: widths of the ReLU layers.
      image_shape: (H, W, C) of the image, whose pixels come out of a sigmoid.
      linear: further arguments of ``nnx.Linear``.
    """

    def __init__(
        self, inputs: int, hidden: Sequence[int], image_shape: tuple[int, int, int], **linear
    ):
        height, width, channels = image_shape
        sizes = (inputs, *hidden, height * width * channels)
        self.layers = nnx.List(nnx.Linear(m, n, **linear) for m, n in zip(sizes, sizes[1:]))
        self.image_shape = image_shape

    def __call__(self, capsules: chex.Array) -> jax.Array:
        """Map masked capsules ``[B, J, D]`` to images ``[B, H, W, C]`` in [0, 1]."""
        x = capsules.reshape(capsules.shape[0], -1)
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        pixels = jax.nn.sigmoid(self.layers[-1](x).astype(jnp.float32))
        return pixels.reshape(-1, *self.image_shape)
