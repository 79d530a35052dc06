"""The convolutional networks to which the paper compares CapsNet."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
from flax import nnx

from capsjax.models.capsnet import Prediction
from capsjax.pieces import bernoulli
from capsjax.plain_layers import Conv, max_pool
from capsjax.preprocessing import check_pixels


@dataclasses.dataclass(frozen=True)
class CNNConfig:
    """The sizes of a convolutional baseline: SAME convolutions, then dense layers.

    The defaults are the baseline for MNIST (section 5: 256, 256 and 128 channels, 5x5 kernels).

    Raises:
      ValueError: pooling leaves no pixel.
    """

    image_shape: tuple[int, int, int] = (28, 28, 1)
    num_classes: int = 10
    channels: tuple[int, ...] = (256, 256, 128)
    kernels: tuple[int, ...] = (5, 5, 5)
    pool: bool = False  # 2x2 maximum pooling after every convolution
    dense: tuple[int, ...] = (328, 192)
    dropout: float = 0.5  # rate before the last layer, in training
    dtype: str = "float32"

    def __post_init__(self):
        needed = 2 ** len(self.channels) if self.pool else 1
        if min(self.image_shape[:2]) < needed:
            height, width, _ = self.image_shape
            raise ValueError(
                f"pooling after {len(self.channels)} convolutions needs {needed} pixels in each "
                f"direction, and images have {height}x{width}"
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

    def features(self, images: chex.Array) -> jax.Array:
        """Map images ``[B, H, W, C]`` to the inputs ``[B, config.dense[-1]]`` of the last layer."""
        chex.assert_shape(images, (None, *self.config.image_shape))
        check_pixels(images)
        x = images
        for conv in self.convs:
            x = conv(x)
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
        return Prediction(self.dense[-1](x).astype(jnp.float32))
