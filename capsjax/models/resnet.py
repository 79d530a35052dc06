"""Residual networks, a stronger baseline than the plain CNNs of the paper.

``cnn_resnet`` has the layers of ResNet-18 of He, Zhang, Ren & Sun, "Deep residual learning for
image recognition" (2016), with the usual changes for images of 28 to 40 pixels: the first
convolution is 3x3 with stride 1 in place of 7x7 with stride 2, and no pooling follows it. Shortcuts
that change the size are normalized 1x1 convolutions, and each convolution is followed by batch
normalization (momentum 0.9, epsilon 1e-5) in place of a bias. With three colours and ten classes it
has 11,173,962 parameters. Not as published: initial weights are ours.

``cnn_resnet_affnist`` has a last stage of 584 channels in place of 512, for the number of
parameters of ``capsnet_affnist`` (0.10% more).
"""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
from flax import nnx

from capsjax.models.backbone import ResidualTrunk
from capsjax.models.capsnet import Prediction
from capsjax.normalization import BatchNorm
from capsjax.plain_layers import Conv
from capsjax.preprocessing import check_pixels


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """The sizes of a residual network. The defaults are ResNet-18 for small images.

    Raises:
      ValueError: there is no stage, or a size is not positive.
    """

    image_shape: tuple[int, int, int] = (32, 32, 3)
    num_classes: int = 10
    conv_channels: int = 64  # of the first convolution, 3x3 with stride 1
    # Channels, number of residual blocks, and stride of each stage.
    stages: tuple[tuple[int, int, int], ...] = ((64, 2, 1), (128, 2, 2), (256, 2, 2), (512, 2, 2))
    norm_momentum: float = 0.9
    norm_epsilon: float = 1e-5
    dtype: str = "float32"

    def __post_init__(self):
        sizes = [self.conv_channels, *(n for stage in self.stages for n in stage)]
        if not self.stages or min(sizes) < 1:
            raise ValueError(f"stages: {self.stages} are not stages of residual blocks")


PRESETS = {
    "cnn_resnet": ResNetConfig(),
    "cnn_resnet_affnist": ResNetConfig(
        image_shape=(40, 40, 1), stages=((64, 2, 1), (128, 2, 2), (256, 2, 2), (584, 2, 2))
    ),
}


class ResNet(nnx.Module):
    """A convolution, stages of residual blocks, the mean over positions, and a dense layer.

    Args:
      config: the sizes.
      rngs: source of the initial parameters.
    """

    def __init__(self, config: ResNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        common = {"dtype": jnp.dtype(config.dtype), "rngs": rngs}
        norm = {"momentum": config.norm_momentum, "epsilon": config.norm_epsilon}
        make_norm = functools.partial(BatchNorm, **norm)
        options = {"padding": "SAME", "bias_init": None, **common}
        self.conv = Conv(config.image_shape[-1], config.conv_channels, 3, **options)
        self.norm = make_norm(config.conv_channels)
        self.trunk = ResidualTrunk(config.conv_channels, config.stages, make_norm, **options)
        last, *_ = config.stages[-1]
        self.dense = nnx.Linear(last, config.num_classes, **common)

    def features(self, images: chex.Array) -> jax.Array:
        """Map images ``[B, H, W, C]`` to the inputs ``[B, F]`` of the last layer."""
        chex.assert_shape(images, (None, *self.config.image_shape))
        check_pixels(images)
        x = self.trunk(jax.nn.relu(self.norm(self.conv(images))))
        return jnp.mean(x.astype(jnp.float32), (1, 2)).astype(x.dtype)

    def __call__(
        self, images: chex.Array, labels: chex.Array | None = None, key: chex.PRNGKey | None = None
    ) -> Prediction:
        """Classify images ``[B, H, W, C]`` with pixels in [0, 1].

        Args:
          images: see above.
          labels, key: ignored; they are arguments because other networks take them.

        Returns:
          A prediction whose scores are logits, without poses and reconstruction.
        """
        return Prediction(self.dense(self.features(images)).astype(jnp.float32))
