"""Matrix capsules with EM routing: Hinton, Sabour & Frosst (2018), and Gritzman (2019).

``matrix`` and ``matrix_small`` are the networks for smallNORB of Hinton, Sabour & Frosst, "Matrix
Capsules with EM Routing" (ICLR 2018). The paper leaves constants open; they are those of the code
that its authors released (google-research, ``capsule_em``).

As published (P: paper, C: code):

- the sizes: a 5x5 convolution of stride 2 with A channels and ReLU; B types of primary capsules,
  1x1; convolutional capsules of C and D types, 3x3, strides 2 and 1; class capsules whose matrices
  all positions share, with coordinate addition to the votes (P). ``matrix`` has A = B = C = D = 32,
  three iterations, 1.8% test error and 316,650 parameters here, "310K" in the paper;
  ``matrix_small`` A = 64, B = 8, C = D = 16 and two iterations, the row of 2.2% in its table 1, and
  68,618 parameters here, "68K" there;
- no normalization of feature maps, poses or activations (P, C);
- EM routing with the inverse temperature 0.01 (1 - 0.95^t), a quarter of it for the class capsules,
  and the constants ``hinton`` of :func:`capsjax.routing.em.em` (C);
- primary capsules without bias, and sigmoid(x - 1) of x, the weighted sum (C);
- initial weights: normal, cut at two deviations, of deviation 0.05 (convolution), 0.5 and 3
  (poses and activations of primary capsules), 0.3 (capsules), 0.01 (class capsules); biases 0.1
  (C);
- coordinates: the centre of the receptive field, in pixels from the middle of the image, / 100
  (C), in the last column of the votes (P; C adds them to other elements);
- the spread loss, with a margin that rises linearly from 0.2 to 0.9 (P; in C it is
  0.2 + 0.79 sigmoid(min(10, t / 50,000 - 4)) after t steps).

Not as published: C adds 1e-7 to sums of weights in convolutional layers and 1e-5 in the last, and
has a mean over the classes in the loss; weight decay (2e-7 times half the squares) is left out;
the flags of a run set batches of 64 and Adam at 0.01 (C; 0.003 in what Gritzman quotes of the
authors) times 0.96 every 20,000 steps, and their defaults are those of Sabour et al. (2017). For
``matrix_small`` the paper does not say which row of its table it is.

``gritzman`` is the network of Gritzman, "Avoiding Implementation Pitfalls of Matrix Capsules with
EM Routing by Hinton et al." (2019) and its code (IBM/matrix-capsules-with-em-routing).

As published: the sizes of ``matrix_small`` (67,154 parameters for one camera; the publication gives
no number), a padded convolution, and batch normalization of the image without scale and offset
(momentum 0.999, epsilon 1e-3); lambda of 0.01 (1 - 0.95^t), the cost times 100 J / I, two
iterations, the best of one to three; initial weights Glorot's uniform ones for convolutions, whose
biases have deviation 0.01, normal ones of deviation 1 cut at two deviations for capsules, beta_a
normal of mean -1,000 and deviation 500, beta_u Glorot's uniform; coordinates (n + 0.5) / N of N
rows or columns, added to the votes; the spread loss.

Not as published: couplings start at 1/J over all positions that see an input capsule, here and
there, but 1e-9 is added there to sums of weights and to activations; the running variance is the
unbiased one here; a row is added to the first element and a column to the second, there the other
way round; the margin rises linearly, there as in C above; the two cameras are channels of one image
here, and examples of their own there. The weight decay of the code is off by default, as here. The
flags of a run set batches of 64 and Adam at 0.003 times 0.96 every 20,000 steps.
"""

import dataclasses

from capsjax.models.capsnet_config import CapsNetConfig

_LARGE = CapsNetConfig(
    image_shape=(32, 32, 2),
    num_classes=5,
    conv_channels=32,
    conv_kernel=5,
    conv_stride=2,
    primary_types=32,
    primary_pose=16,
    primary_kernel=1,
    primary_stride=1,
    primary_bias=False,
    primary_offset=-1.0,
    coordinates="pixels",
    capsule_layers=((32, 3, 2), (32, 3, 1)),
    layer_votes="matrix",
    pose_norm="none",
    votes="conv_matrix",
    routing="em",
    em_constants="hinton",
    decoder=None,
    init="hinton",
)
_SMALL = dataclasses.replace(
    _LARGE,
    conv_channels=64,
    primary_types=8,
    capsule_layers=((16, 3, 2), (16, 3, 1)),
    routing_iterations=2,
)

PRESETS: dict[str, CapsNetConfig] = {
    "capsnet_matrix": _LARGE,
    "capsnet_matrix_small": _SMALL,
    "capsnet_gritzman": dataclasses.replace(
        _SMALL,
        image_shape=(32, 32, 1),
        padding="SAME",
        input_norm="batch",
        norm_momentum=0.999,
        primary_bias=True,
        primary_offset=0.0,
        coordinates="grid",
        em_constants="gritzman",
        init="gritzman",
    ),
}
