"""The network of Ribeiro, Leontidis & Kollias, "Capsule Routing via Variational Bayes" (2020).

As published (the authors' code, fabio-deep/Variational-Capsule-Routing, its network of three
capsule layers for smallNORB, ``vb`` here):

- the sizes 64, 8, 16, 16 and one capsule a class: a 5x5 convolution of stride 2 without bias,
  batch normalization, ReLU; primary capsules 1x1 without bias, whose poses and activations are
  batch-normalized by type; convolutional capsules, 3x3, strides 2 and 1; class capsules whose
  matrices all positions share; 68,714 parameters for smallNORB, counted from these sizes;
- VB routing with diagonal covariances and three iterations, in which an input capsule belongs to
  capsules at all positions that see it; posterior means, and the arguments of the sigmoids that
  give activations, are batch-normalized by type in every layer, without scale and offset (so the
  parameters beta_u and beta_a have no effect, as published);
- coordinates (n + 1) / (10 N) of N rows and columns, added to the votes for the class capsules;
- the loss: cross-entropy of the softmax of the activations;
- batch normalizations with momentum 0.9 (0.1 in PyTorch) and epsilon 1e-5;
- initial weights: he_uniform for the convolution, Glorot's uniform distribution for all others.

Not as published: densities are normalized as logarithms, there after exp with a floor of 1e-11;
the best epoch on validation data is kept there. The paper has other sizes too, which the code does
not have. The flags of a run set batches of 128, Adam at 0.001 without decay (``--decay_rate=1``)
and 300 epochs, and a fifth of the training data for validation (``--validation_fraction=0.2``).
"""

from capsjax.models.capsnet_config import CapsNetConfig

PRESETS: dict[str, CapsNetConfig] = {
    "capsnet_vb": CapsNetConfig(
        image_shape=(32, 32, 2),
        num_classes=5,
        conv_channels=64,
        conv_kernel=5,
        conv_stride=2,
        conv_bias=False,
        conv_norm="batch",
        norm_momentum=0.9,
        norm_epsilon=1e-5,
        primary_types=8,
        primary_pose=16,
        primary_kernel=1,
        primary_stride=1,
        primary_bias=False,
        primary_norm="batch",
        coordinates="tenths",
        capsule_layers=((16, 3, 2), (16, 3, 1)),
        layer_votes="matrix",
        pose_norm="batch",
        votes="conv_matrix",
        routing="vb",
        decoder=None,
        init="vb",
    ),
}
