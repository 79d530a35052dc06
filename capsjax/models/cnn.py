"""Plain convolutional networks, with which capsule networks are compared.

Those of Sabour, Frosst & Hinton (2017) have convolutions with zero padding and no normalization.

``cnn_m5`` is M5 of An, Lee, Park, Yang & So, "An Ensemble of Simple Convolutional Neural Network
Models for MNIST Digit Recognition" (2020, code ansh941/MnistSimpleCNN): five times 5x5 with 32, 64,
96, 128 and 160 channels without padding or bias, each with batch normalization (momentum 0.9 and
epsilon 1e-5) and ReLU, then one dense layer without bias, batch-normalized, 1,128,180 parameters.
Not as published: initial weights are ours, and pixels are from 0 to 1 and not from -1 to 1, which
changes nothing beyond epsilon, because the first normalization takes shift and scale away.
"""

import dataclasses
import itertools

import chex
import jax
import jax.numpy as jnp
from flax import nnx

from capsjax.models.capsnet import Prediction
from capsjax.models.windows import Window, smallest_image
from capsjax.normalization import BatchNorm
from capsjax.pieces import bernoulli
from capsjax.plain_layers import PADDINGS, Conv, max_pool
from capsjax.preprocessing import check_pixels
from capsjax.routing import check_choice

NORMS = ("none", "batch")


@dataclasses.dataclass(frozen=True)
class CNNConfig:
    """The sizes of a convolutional baseline: convolutions, then dense layers.

    The defaults are the baseline for MNIST (section 5: 256, 256 and 128 channels, 5x5 kernels).

    Raises:
      ValueError: a name is unknown, convolutions and pooling leave no pixel, or a rate is no share.
    """

    image_shape: tuple[int, int, int] = (28, 28, 1)
    num_classes: int = 10
    channels: tuple[int, ...] = (256, 256, 128)
    kernels: tuple[int, ...] = (5, 5, 5)
    padding: str = "SAME"  # of the convolutions; see capsjax.Conv
    conv_norm: str = "none"  # or "batch": of convolutions and logits, in place of their biases
    norm_momentum: float = 0.9
    norm_epsilon: float = 1e-5
    pool: bool = False  # 2x2 maximum pooling after every convolution
    dense: tuple[int, ...] = (328, 192)
    dropout: float = 0.5  # rate before the last layer, in training
    dtype: str = "float32"

    def __post_init__(self):
        check_choice("padding", self.padding, PADDINGS)
        check_choice("conv_norm", self.conv_norm, NORMS)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and less than 1, not {self.dropout}")
        windows, pooling = [], [Window(2, 2, False)] * self.pool
        for kernel in self.kernels:
            windows += [Window(kernel, 1, self.padding == "SAME"), *pooling]
        needed, (height, width, _) = smallest_image(windows), self.image_shape
        if min(height, width) < needed:
            raise ValueError(
                f"image_shape: {height}x{width} pixels are too few for "
                f"{len(self.kernels)} convolutions{' with pooling' * self.pool}; the smallest "
                f"image is {needed}x{needed}"
            )


class CNN(nnx.Module):
    """Convolutions with ReLUs, optional pooling, and dense layers that end in logits.

    Args:
      config: the sizes.
      rngs: source of the initial parameters.
    """

    def __init__(self, config: CNNConfig, *, rngs: nnx.Rngs):
        self.config = config
        common = {"dtype": jnp.dtype(config.dtype), "rngs": rngs}
        norm = {"momentum": config.norm_momentum, "epsilon": config.norm_epsilon}
        normalized = config.conv_norm == "batch"
        options = {"padding": config.padding, **common}
        if normalized:
            options["bias_init"] = None
        height, width, channels = config.image_shape
        convs = []
        for channels_out, kernel in zip(config.channels, config.kernels, strict=True):
            convs.append(Conv(channels, channels_out, kernel, **options))
            channels = channels_out
            if config.padding == "VALID":
                height, width = height - kernel + 1, width - kernel + 1
            if config.pool:
                height, width = height // 2, width // 2
        self.convs = nnx.List(convs)
        sizes = (height * width * channels, *config.dense, config.num_classes)
        last = len(config.dense)
        self.dense = nnx.List(
            nnx.Linear(m, n, use_bias=not normalized or layer < last, **common)
            for layer, (m, n) in enumerate(itertools.pairwise(sizes))
        )
        if normalized:
            norms = (*config.channels, config.num_classes)
            self.norms = nnx.List(BatchNorm(channels, **norm) for channels in norms)

    def features(self, images: chex.Array) -> jax.Array:
        """Map images ``[B, H, W, C]`` to the inputs ``[B, F]`` of the last layer."""
        chex.assert_shape(images, (None, *self.config.image_shape))
        check_pixels(images)
        x = images
        for n, conv in enumerate(self.convs):
            x = self._normalize(conv(x), n)
            if self.config.pool:
                x = max_pool(x)
            x = jax.nn.relu(x)
        x = jax.lax.collapse(x, 1)
        for layer in self.dense[:-1]:
            x = jax.nn.relu(layer(x))
        return x

    def __call__(
        self, images: chex.Array, labels: chex.Array | None = None, key: chex.PRNGKey | None = None
    ) -> Prediction:
        """Classify images.

        Args:
          images: ``[B, H, W, C]``, pixels in [0, 1].
          labels: ignored; they are an argument because CapsNet takes them.
          key: key of the dropout. If None, there is no dropout.

        Returns:
          A prediction whose scores are logits, without poses and reconstruction.
        """
        x = self.features(images)
        if key is not None and self.config.dropout:
            kept = bernoulli(key, 1 - self.config.dropout, x.shape)
            x = jnp.where(kept, x / (1 - self.config.dropout), 0)
        logits = self._normalize(self.dense[-1](x), -1)
        return Prediction(logits.astype(jnp.float32))

    def _normalize(self, x, layer):
        return x if self.config.conv_norm == "none" else self.norms[layer](x)
