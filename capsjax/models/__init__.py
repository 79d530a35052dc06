"""Whole networks, their configurations, and presets for the networks of the literature.

Presets of a publication say beside them, or in the module that they come from, what is as published
and what is not. ``small``, ``deep``, ``tiny`` and ``mnist_small`` are not published networks.
"""

import dataclasses

from flax import nnx

from capsjax.models import efficient, hvc, matrix, resnet, variational
from capsjax.models.capsnet import CapsNet, Prediction
from capsjax.models.capsnet_config import CapsNetConfig
from capsjax.models.cnn import CNN, CNNConfig
from capsjax.models.hvc import HVCConfig, HVCNet
from capsjax.models.resnet import ResNet, ResNetConfig
from capsjax.models.small_images import fit_image

__all__ = [
    "CNN",
    "CNNConfig",
    "CapsNet",
    "CapsNetConfig",
    "Config",
    "HVCConfig",
    "HVCNet",
    "PRESETS",
    "Prediction",
    "ResNet",
    "ResNetConfig",
    "build",
    "fit_image",
    "preset",
]

Config = CapsNetConfig | CNNConfig | HVCConfig | ResNetConfig

PRESETS: dict[str, Config] = {
    # Of Sabour, Frosst & Hinton (2017). Sizes are those of the text; it does not say whether there
    # is a decoder for other data than MNIST and MultiMNIST. Initial weights and what else differs
    # between text and code are recipes, see capsjax.recipes.
    "capsnet_mnist": CapsNetConfig(),
    "capsnet_multimnist": CapsNetConfig(image_shape=(36, 36, 1)),
    "capsnet_affnist": CapsNetConfig(image_shape=(40, 40, 1)),
    # The next three are from section 7 of the paper, the padding for CIFAR-10 from its code.
    "capsnet_cifar10": CapsNetConfig(
        image_shape=(24, 24, 3), primary_types=64, padding="SAME", routing="leaky"
    ),
    "capsnet_smallnorb": CapsNetConfig(image_shape=(32, 32, 2), num_classes=5),
    "capsnet_svhn": CapsNetConfig(
        image_shape=(32, 32, 3), conv_channels=64, primary_types=16, primary_pose=6, class_pose=8
    ),
    # A sixteenth of the arithmetic of capsnet_mnist, for comparisons on a small machine.
    "capsnet_small": CapsNetConfig(conv_channels=64, primary_types=8, decoder=(128, 256)),
    # Efficient-CapsNet, see capsjax.models.efficient.
    **efficient.PRESETS,
    # Matrix capsules, see capsjax.models.matrix, and capsjax.models.variational.
    **matrix.PRESETS,
    **variational.PRESETS,
    # Homogeneous vector capsules and the convolutions of M5, see capsjax.models.hvc.
    **hvc.PRESETS,
    # Four routed layers, three of them convolutional: 6x6, 4x4, 2x2, 1x1, classes.
    "capsnet_deep": CapsNetConfig(
        conv_channels=64,
        primary_types=8,
        capsule_layers=((8, 3, 1), (8, 3, 1), (8, 2, 1)),
        squash="exponential",
        decoder=(128, 256),
    ),
    # For photographs of 64 to 224 pixels: strided convolutions with residual blocks, as in ResNet
    # (He et al. 2016), then 4x4 to 14x14 positions with primary capsules. Groups of channels are
    # normalized, because people's own data are small and so are their batches.
    "capsnet_backbone": CapsNetConfig(
        image_shape=(64, 64, 3),
        conv_channels=32,
        conv_kernel=5,
        conv_stride=2,
        padding="SAME",
        conv_norm="group",
        trunk=((32, 1, 1), (64, 1, 2), (128, 1, 2)),
        primary_types=16,
        primary_kernel=3,
        primary_stride=2,
        decoder=(64, 32, 16),
        decoder_kind="transposed",
    ),
    # For a thousand classes of photographs of 224 pixels: the layers of ResNet-18 down to 14x14
    # positions, a convolutional capsule layer, and 1.2 billion weights from its 4,608 capsules to
    # the class capsules. Weights and Adam's moments take 14 GB: docs/results/scale.md.
    "capsnet_backbone_224": CapsNetConfig(
        image_shape=(224, 224, 3),
        num_classes=1000,
        conv_channels=64,
        conv_kernel=7,
        conv_stride=2,
        padding="SAME",
        conv_norm="group",
        trunk=((64, 2, 2), (128, 2, 2), (256, 2, 2)),
        primary_kernel=3,
        primary_stride=1,
        capsule_layers=((32, 3, 1),),
        decoder=None,
    ),
    "capsnet_tiny": CapsNetConfig(
        conv_channels=16, primary_types=4, primary_kernel=9, decoder=(32, 64)
    ),
    "cnn_mnist": CNNConfig(),
    "cnn_multimnist": CNNConfig(
        image_shape=(36, 36, 1), channels=(512, 256), kernels=(9, 5), pool=True, dense=(1024,)
    ),
    # The MultiMNIST baseline with hidden units for the number of parameters of capsnet_affnist
    # (0.08% more). The paper says only that the networks were of similar size.
    "cnn_affnist": CNNConfig(
        image_shape=(40, 40, 1), channels=(512, 256), kernels=(9, 5), pool=True, dense=(397,)
    ),
    # The same for the number of parameters of capsnet_smallnorb (0.01% fewer). The paper compares
    # that network with no CNN.
    "cnn_smallnorb": CNNConfig(
        image_shape=(32, 32, 2),
        num_classes=5,
        channels=(512, 256),
        kernels=(9, 5),
        pool=True,
        dense=(364,),
    ),
    # The MultiMNIST baseline with a quarter of its channels and hidden units, for comparison with
    # capsnet_small.
    "cnn_small": CNNConfig(channels=(128, 64), kernels=(9, 5), pool=True, dense=(256,)),
    # The MNIST baseline with an eighth of its channels and hidden units.
    "cnn_mnist_small": CNNConfig(channels=(32, 32, 16), dense=(41, 24)),
    # For comparison with capsnet_m5_hvc and capsnet_m5, see capsjax.models.cnn.
    "cnn_m5": CNNConfig(
        channels=(32, 64, 96, 128, 160),
        kernels=(5, 5, 5, 5, 5),
        padding="VALID",
        conv_norm="batch",
        dense=(),
        dropout=0.0,
    ),
    # Residual networks, see capsjax.models.resnet.
    **resnet.PRESETS,
    "cnn_tiny": CNNConfig(channels=(8, 8), kernels=(5, 5), pool=True, dense=(32,)),
}


def preset(name: str, **changes) -> Config:
    """Return a configuration by name, with fields replaced.

    Args:
      name: a key of :data:`PRESETS`.
      **changes: fields of the configuration and their values.

    Raises:
      ValueError: the name is unknown.
      TypeError: a field is unknown.

    Example:
      >>> preset("capsnet_mnist", num_classes=5).input_capsules
      1152
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, not {name!r}")
    return dataclasses.replace(PRESETS[name], **changes)


def build(config: Config, *, rngs: nnx.Rngs) -> CapsNet | CNN | HVCNet | ResNet:
    """Make the network that a configuration describes.

    Raises:
      TypeError: it is no configuration.
    """
    networks = {
        CapsNetConfig: CapsNet,
        CNNConfig: CNN,
        HVCConfig: HVCNet,
        ResNetConfig: ResNet,
    }
    for kind, network in networks.items():
        if isinstance(config, kind):
            return network(config, rngs=rngs)
    raise TypeError(f"a network is made from a configuration, as of preset(name), not {config!r}")
