"""Whole networks: CapsNet and the convolutional baselines of the paper.

A frozen configuration says what is built; presets name the paper's networks.
"""

import dataclasses
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers as init

from capsjax.losses import argmax_mask, label_mask, mask_capsules
from capsjax.modules import Conv, Decoder, PrimaryCapsules, RoutedCapsules
from capsjax.routing import RoutingOutput, Sweeps

INITS = ("lecun", "official")


class Prediction(NamedTuple):
    """What every network says about a batch of images."""

    scores: jax.Array  # [B, J]; the largest is the predicted class
    pose: jax.Array | None = None  # [B, J, D] class capsules
    reconstruction: jax.Array | None = None  # [B, H, W, C] in [0, 1]


@dataclasses.dataclass(frozen=True)
class CapsNetConfig:
    """CapsNet of Sabour, Frosst & Hinton (2017), section 4.

    The defaults are the paper's network for MNIST. ``init``, ``routing_bias`` and
    ``primary_scale`` are differences between the text and the authors' code.
    """

    image_shape: tuple[int, int, int] = (28, 28, 1)  # height, width, channels
    num_classes: int = 10  # J
    conv_channels: int = 256
    conv_kernel: int = 9
    primary_types: int = 32
    primary_pose: int = 8  # K
    primary_kernel: int = 9
    primary_stride: int = 2
    class_pose: int = 16  # D
    routing_iterations: int = 3  # R
    routing_gradient: str = "full"  # full, stop or last
    # auto, naive, stream or sweeps of one's own: how, not what, is computed
    routing_implementation: str | Sweeps = "auto"
    decoder: tuple[int, ...] | None = (512, 1024)  # hidden widths; None: no reconstruction
    init: str = "lecun"  # lecun, or official: truncated normals, biases 0.1
    routing_bias: bool = False  # learned bias of s_j, 0.1 at first
    primary_scale: float = 1.0  # factor on the primary capsules' weighted sums
    dtype: str = "float32"  # of convolutions, votes and decoder products

    def __post_init__(self):
        smallest = self.conv_kernel + self.primary_kernel - 1
        height, width, _ = self.image_shape
        if min(height, width) < smallest:
            raise ValueError(
                f"image_shape: {height}x{width} pixels are too few for a {self.conv_kernel}x"
                f"{self.conv_kernel} and a {self.primary_kernel}x{self.primary_kernel} valid "
                f"convolution; the smallest image is {smallest}x{smallest}"
            )
        if self.init not in INITS:
            raise ValueError(f"init must be one of {', '.join(INITS)}, not {self.init!r}")

    @property
    def input_capsules(self) -> int:
        """Number I of primary capsules."""
        height, width = (
            (n - self.conv_kernel + 1 - self.primary_kernel) // self.primary_stride + 1
            for n in self.image_shape[:2]
        )
        return height * width * self.primary_types


class CapsNet(nnx.Module):
    """Convolution, primary capsules, routed class capsules, decoder."""

    def __init__(self, config: CapsNetConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        dtype = jnp.dtype(c.dtype)
        official = c.init == "official"
        bias = {"bias_init": init.constant(0.1)} if official else {}

        def kernel(stddev):
            return {"kernel_init": init.truncated_normal(stddev)} if official else {}

        common = {"dtype": dtype, "rngs": rngs}
        self.conv = Conv(
            c.image_shape[2], c.conv_channels, c.conv_kernel, **kernel(0.05), **bias, **common
        )
        self.primary = PrimaryCapsules(
            c.conv_channels,
            c.primary_types,
            c.primary_pose,
            c.primary_kernel,
            c.primary_stride,
            scale=c.primary_scale,
            **kernel(0.1),
            **bias,
            **common,
        )
        self.classes = RoutedCapsules(
            c.input_capsules,
            c.primary_pose,
            c.num_classes,
            c.class_pose,
            iterations=c.routing_iterations,
            gradient=c.routing_gradient,
            implementation=c.routing_implementation,
            bias_init=init.constant(0.1) if c.routing_bias else None,
            **kernel(0.1),
            **common,
        )
        if c.decoder is not None:
            inputs = c.num_classes * c.class_pose
            self.decoder = Decoder(
                inputs, c.decoder, c.image_shape, **kernel(0.1), **bias, **common
            )

    def encode(self, images: chex.Array) -> RoutingOutput:
        """Class capsules of images ``[B, H, W, C]`` with pixels in [0, 1]."""
        chex.assert_shape(images, (None, *self.config.image_shape))
        return self.classes(self.primary(jax.nn.relu(self.conv(images))))

    def decode(self, pose: chex.Array, mask: chex.Array) -> jax.Array:
        """Images ``[B, H, W, C]`` drawn from class capsules.

        Args:
          pose: ``[B, J, D]``.
          mask: ``[B, J]``, usually one for a single class.
        """
        return self.decoder(jax.vmap(mask_capsules)(pose, mask))

    def __call__(
        self, images: chex.Array, labels: chex.Array | None = None, key: chex.PRNGKey | None = None
    ) -> Prediction:
        """Classify and reconstruct.

        Args:
          images: ``[B, H, W, C]``, pixels in [0, 1].
          labels: ``[B]``; reconstruct from the capsule of the label, as in training.
            None: from the longest capsule. Scores and poses never depend on it.
          key: ignored; networks with dropout take it.
        """
        capsules = self.encode(images)
        if self.config.decoder is None:
            return Prediction(capsules.activation, capsules.pose)
        if labels is None:
            mask = jax.vmap(argmax_mask)(capsules.activation)
        else:
            mask = label_mask(labels, self.config.num_classes)
        return Prediction(capsules.activation, capsules.pose, self.decode(capsules.pose, mask))


@dataclasses.dataclass(frozen=True)
class CNNConfig:
    """A convolutional baseline of the paper: SAME convolutions, then dense layers.

    The defaults are the MNIST baseline (section 5: 256, 256 and 128 channels, 5x5).
    """

    image_shape: tuple[int, int, int] = (28, 28, 1)
    num_classes: int = 10
    channels: tuple[int, ...] = (256, 256, 128)
    kernels: tuple[int, ...] = (5, 5, 5)
    pool: bool = False  # 2x2 maximum after every convolution
    dense: tuple[int, ...] = (328, 192)
    dropout: float = 0.5  # before the last layer, in training
    dtype: str = "float32"


class CNN(nnx.Module):
    """Convolutions with ReLU, optional pooling, dense layers, logits."""

    def __init__(self, config: CNNConfig, *, rngs: nnx.Rngs):
        self.config = config
        common = {"dtype": jnp.dtype(config.dtype), "rngs": rngs}
        height, width, channels = config.image_shape
        convs = []
        for channels_out, kernel in zip(config.channels, config.kernels, strict=True):
            convs.append(Conv(channels, channels_out, kernel, padding="SAME", **common))
            channels = channels_out
            if config.pool:
                height, width = height // 2, width // 2
        self.convs = nnx.List(convs)
        sizes = (height * width * channels, *config.dense, config.num_classes)
        self.dense = nnx.List(nnx.Linear(m, n, **common) for m, n in zip(sizes, sizes[1:]))

    def __call__(
        self, images: chex.Array, labels: chex.Array | None = None, key: chex.PRNGKey | None = None
    ) -> Prediction:
        """Logits of images ``[B, H, W, C]``; with a key, dropout is on. Labels are ignored."""
        chex.assert_shape(images, (None, *self.config.image_shape))
        x = images
        for conv in self.convs:
            x = jax.nn.relu(conv(x))
            if self.config.pool:
                x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape(x.shape[0], -1)
        for layer in self.dense[:-1]:
            x = jax.nn.relu(layer(x))
        if key is not None and self.config.dropout:
            kept = jax.random.bernoulli(key, 1 - self.config.dropout, x.shape)
            x = jnp.where(kept, x / (1 - self.config.dropout), 0)
        return Prediction(self.dense[-1](x).astype(jnp.float32))


PRESETS: dict[str, CapsNetConfig | CNNConfig] = {
    "capsnet_mnist": CapsNetConfig(),
    "capsnet_multimnist": CapsNetConfig(image_shape=(36, 36, 1)),
    "capsnet_tiny": CapsNetConfig(
        conv_channels=16, primary_types=4, primary_kernel=9, decoder=(32, 64)
    ),
    "cnn_mnist": CNNConfig(),
    "cnn_multimnist": CNNConfig(
        image_shape=(36, 36, 1), channels=(512, 256), kernels=(9, 5), pool=True, dense=(1024,)
    ),
    "cnn_tiny": CNNConfig(channels=(8, 8), kernels=(5, 5), pool=True, dense=(32,)),
}


def preset(name: str, **changes) -> CapsNetConfig | CNNConfig:
    """A named configuration, with fields replaced.

    Args:
      name: a key of :data:`PRESETS`.
      **changes: fields of the configuration and their values.

    Raises:
      ValueError: unknown name. TypeError: unknown field.

    Example:
      >>> preset("capsnet_mnist", num_classes=5).input_capsules
      1152
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, not {name!r}")
    return dataclasses.replace(PRESETS[name], **changes)


def build(config: CapsNetConfig | CNNConfig, *, rngs: nnx.Rngs) -> CapsNet | CNN:
    """The network that a configuration describes."""
    return {CapsNetConfig: CapsNet, CNNConfig: CNN}[type(config)](config, rngs=rngs)
