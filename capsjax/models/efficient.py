"""The networks of Efficient-CapsNet (Mazzia, Salvetti & Chiaberge 2021).

As published (paper, and the authors' code EscVM/Efficient-CapsNet):

- the layers and their sizes: four convolutions, each followed by ReLU and batch normalization
  (momentum 0.99, epsilon 1e-3); for smallNORB by a leaky ReLU of slope 0.3 and instance
  normalization (epsilon 1e-3); 16 primary capsules of 8 numbers by a depthwise convolution; the
  squash (1 - exp(-n)) s / n; self-attention routing to class capsules of 16 numbers;
- the numbers of trainable parameters without decoder: 161,824 for MNIST, 154,656 for MultiMNIST
  and 151,664 for smallNORB;
- initial weights: convolutions, W and hidden layers of the decoder ``he_normal``, primary capsules
  ``glorot_uniform``, the last layer of the decoder ``glorot_normal``, scales and offsets of
  instance normalization uniform in [-0.05, 0.05].

Not as published:

- the decoder for smallNORB is one of convolutions there; this network has none;
- lengths are those of the capsules; there, 1e-7 is added to their squares;
- training: the flags of a run set it, and their defaults are those of Sabour et al. (2017).
  Published are batches of 16, Adam at 5e-4 times 0.97 an epoch with a floor of 5e-5, 150 epochs,
  0.392 times the mean squared error of the reconstruction, and images for MNIST rotated, shifted
  and zoomed, for smallNORB standardized over the whole data set, reduced to 64x64 pixels, cropped
  to 48x48 and changed in brightness and contrast. ``experiments.smallnorb`` does the last four,
  and standardizes the channels of each image.

With a momentum of 0.99 the running statistics forget their initial values in some hundred steps:
after fewer, the error in evaluation is far above that in training.
"""

import dataclasses

from capsjax.models.capsnet_config import CapsNetConfig

_MNIST = CapsNetConfig(
    conv_channels=32,
    conv_kernel=5,
    more_convs=((64, 3, 1), (64, 3, 1), (128, 3, 2)),
    conv_norm="batch",
    norm_place="after",
    primary_types=16,
    primary_stride=1,
    primary_depthwise=True,
    squash="exponential",
    routing="self_attention",
    init="efficient",
)

PRESETS: dict[str, CapsNetConfig] = {
    "capsnet_efficient": _MNIST,
    "capsnet_efficient_multimnist": dataclasses.replace(
        _MNIST,
        image_shape=(36, 36, 1),
        more_convs=((64, 3, 1), (64, 3, 2), (128, 3, 2)),
        primary_kernel=5,
        primary_stride=2,
    ),
    "capsnet_efficient_smallnorb": dataclasses.replace(
        _MNIST,
        image_shape=(48, 48, 2),
        num_classes=5,
        conv_kernel=7,
        conv_stride=2,
        conv_norm="instance",
        conv_slope=0.3,
        primary_kernel=8,
        decoder=None,
    ),
}
