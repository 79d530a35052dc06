r"""Homogeneous vector capsules: networks of capsules without routing.

``hvc`` is the network for MNIST of Byerly, Kalganova & Dear, "No Routing Needed Between Capsules"
(2020, arXiv 2001.09136, with the authors' code AdamByerly/BMCNNwHFCs).

As published: nine 3x3 convolutions of 32, 48, ... 160 channels without padding or bias, each with
batch normalization (offset, no scale, momentum 0.9997, epsilon 1e-3) and ReLU; after the third, the
sixth and the ninth a branch with a :class:`HomogeneousCapsules` head, one capsule for each channel
(the paper's Z-derived capsules); the lengths of the class capsules of each branch,
batch-normalized, are added (the merge without learned weights); cross-entropy; pixels from -1 to 1;
initial weights normal of deviation 0.05; 1,514,187 parameters. ``merge="learned"`` gives the
branches weights that start at one, 1,514,190 parameters.

Not as published: the running variance is the unbiased one; pixels are divided by 255, there by 256;
the flags of a run set batches of 120,
Adam at 0.001 times 0.98 an epoch, 300 epochs; the augmentation (rotation, shifts within the margins
of the digit, squeeze, a 4x4 erasure) and the average of the weights that is evaluated (0.999) are
not those of a command here. With a momentum of 0.9997 running statistics take some ten thousand
steps to forget their initial values, and the error in evaluation is far too high before.

``m5`` and ``m5_hvc`` are not published as a whole. Both have the convolutions of the network M5
(:mod:`capsjax.models.cnn`) with batch normalization and ReLU, 1,025,760 parameters. In place of its
dense layer ``m5_hvc`` has one branch as above, with a capsule for each position and scales in the
batch normalizations, 1,128,482 parameters; ``m5`` (a :class:`capsjax.CapsNet`) has the head of
Efficient-CapsNet, a depthwise 8x8 convolution to 20 capsules of 8 numbers and self-attention
routing, 1,061,960 parameters. Initial weights are ours.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
from flax import nnx

from capsjax.models.capsnet import Prediction
from capsjax.models.capsnet_config import CapsNetConfig
from capsjax.models.windows import Window, smallest_image
from capsjax.normalization import BatchNorm
from capsjax.plain_layers import Conv
from capsjax.precision import accumulator
from capsjax.preprocessing import check_pixels
from capsjax.routing import check_choice
from capsjax.squash import safe_norm

CAPSULES = ("channels", "positions")
MERGES = ("even", "learned")
NORMAL = jax.nn.initializers.normal(0.05)


@dataclasses.dataclass(frozen=True)
class HVCConfig:
    """The sizes of a network of homogeneous vector capsules. The defaults are the paper's, MNIST.

    Raises:
      ValueError: a name is unknown, a branch has no convolution, or images are too small.
    """

    image_shape: tuple[int, int, int] = (28, 28, 1)
    num_classes: int = 10
    convs: tuple[tuple[int, int], ...] = tuple((32 + 16 * n, 3) for n in range(9))  # width, kernel
    branches: tuple[int, ...] = (3, 6, 9)  # after which convolutions, counted from one
    capsules: str = "channels"  # whose maps are capsules, or positions
    merge: str = "even"  # of the branches, or with learned weights
    norm_scale: bool = False  # whether batch normalizations learn scales, too
    norm_momentum: float = 0.9997
    norm_epsilon: float = 1e-3
    dtype: str = "float32"

    def __post_init__(self):
        check_choice("capsules", self.capsules, CAPSULES)
        check_choice("merge", self.merge, MERGES)
        if not self.branches or not all(0 < n <= len(self.convs) for n in self.branches):
            raise ValueError(f"branches: each of {self.branches} follows a convolution")
        smallest = smallest_image(Window(kernel, 1, False) for _, kernel in self.convs)
        height, width, _ = self.image_shape
        if min(height, width) < smallest:
            raise ValueError(
                f"image_shape: {height}x{width} pixels are too few for these convolutions; the "
                f"smallest image is {smallest}x{smallest}"
            )


PRESETS = {
    "capsnet_hvc": HVCConfig(),
    "capsnet_m5_hvc": HVCConfig(
        convs=((32, 5), (64, 5), (96, 5), (128, 5), (160, 5)),
        branches=(5,),
        capsules="positions",
        norm_scale=True,
        norm_momentum=0.9,
        norm_epsilon=1e-5,
    ),
    "capsnet_m5": CapsNetConfig(
        conv_channels=32,
        conv_kernel=5,
        more_convs=((64, 5, 1), (96, 5, 1), (128, 5, 1), (160, 5, 1)),
        conv_bias=False,
        conv_norm="batch",
        norm_momentum=0.9,
        norm_epsilon=1e-5,
        primary_types=20,
        primary_kernel=8,
        primary_stride=1,
        primary_depthwise=True,
        squash="exponential",
        routing="self_attention",
        decoder=None,
    ),
}


class HomogeneousCapsules(nnx.Module):
    r"""A head of homogeneous vector capsules: weighted sums of capsules, component by component.

    .. math:: v_j = \mathrm{ReLU}\Big(\mathrm{BN}\big(\textstyle\sum_i w_{ij} \odot u_i\big)\Big)

    Byerly, Kalganova & Dear (2020). Batch normalization takes each component over the batch and
    over the classes.

    Args:
      grid: height and width (H, W) of the feature maps.
      channels: C.
      classes: J.
      capsules: ``channels``, each a capsule of H W numbers, or ``positions``, of C numbers.
      dtype: type of the products.
      rngs: source of the initial weights ``[I, J, D]``.
      norm: further arguments of :class:`capsjax.BatchNorm`.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        channels: int,
        classes: int,
        *,
        capsules: str = "channels",
        dtype=jnp.float32,
        rngs: nnx.Rngs,
        **norm,
    ):
        check_choice("capsules", capsules, CAPSULES)
        positions = grid[0] * grid[1]
        I, D = (channels, positions) if capsules == "channels" else (positions, channels)
        self.kernel = nnx.Param(NORMAL(rngs.params(), (I, classes, D), jnp.float32))
        self.norm = BatchNorm(D, **norm)
        self.capsules, self.dtype = capsules, dtype

    def __call__(self, x: chex.Array) -> jax.Array:
        """Map feature maps ``[B, H, W, C]`` to class capsules ``[B, J, D]``."""
        u = jax.lax.collapse(x, 1, 3).astype(self.dtype)
        axes = "bdi" if self.capsules == "channels" else "bid"
        W, wide = self.kernel[...].astype(self.dtype), accumulator(u.dtype)
        s = jnp.einsum(f"{axes},ijd->bjd", u, W, preferred_element_type=wide)
        return jax.nn.relu(self.norm(s))


class HVCNet(nnx.Module):
    """Convolutions with branches that end in homogeneous vector capsules.

    Args:
      config: the sizes.
      rngs: source of the initial parameters.
    """

    def __init__(self, config: HVCConfig, *, rngs: nnx.Rngs):
        self.config = config
        norm = {"momentum": config.norm_momentum, "epsilon": config.norm_epsilon}
        norm["scale"] = config.norm_scale
        common = {"dtype": jnp.dtype(config.dtype), "rngs": rngs}
        height, width, channels = config.image_shape
        convs, norms, heads = [], [], []
        for n, (after, kernel) in enumerate(config.convs, 1):
            options = {"kernel_init": NORMAL, "bias_init": None, **common}
            convs.append(Conv(channels, after, kernel, **options))
            norms.append(BatchNorm(after, **norm))
            height, width, channels = height - kernel + 1, width - kernel + 1, after
            if n in config.branches:
                sizes = ((height, width), channels, config.num_classes)
                options = {"capsules": config.capsules, **norm, **common}
                heads.append(HomogeneousCapsules(*sizes, **options))
        self.convs, self.norms, self.heads = nnx.List(convs), nnx.List(norms), nnx.List(heads)
        if config.merge == "learned":
            self.shares = nnx.Param(jnp.ones(len(heads), jnp.float32))
        self.merge_norm = BatchNorm(len(heads), **norm)

    def class_capsules(self, images: chex.Array) -> list[jax.Array]:
        """Map images ``[B, H, W, C]`` to the class capsules ``[B, J, D]`` of each branch."""
        chex.assert_shape(images, (None, *self.config.image_shape))
        check_pixels(images)
        x, heads, found = 2 * images - 1, iter(self.heads), []
        for n, (conv, norm) in enumerate(zip(self.convs, self.norms), 1):
            x = jax.nn.relu(norm(conv(x)))
            if n in self.config.branches:
                found.append(next(heads)(x))
        return found

    def features(self, images: chex.Array) -> jax.Array:
        """Map images to the class capsules of the last branch as one vector, ``[B, J D]``."""
        last = self.class_capsules(images)[-1]
        return jax.lax.collapse(last, 1)

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
        lengths = jnp.stack([safe_norm(v) for v in self.class_capsules(images)], -1)
        if self.config.merge == "learned":
            lengths = lengths * self.shares[...][None, None]
        return Prediction(jnp.sum(self.merge_norm(lengths), -1).astype(jnp.float32))
