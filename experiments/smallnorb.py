"""CapsNet on smallNORB: stereo pairs of toys, halved to 48x48 pixels, crops of 32x32.

    python -m experiments.smallnorb                            the paper reports 2.7% test error
    python -m experiments.smallnorb --noreconstruction         standardized pixels
    python -m experiments.smallnorb --noreconstruction --model=cnn    as many parameters
    python -m experiments.smallnorb --preset=matrix            1.8%; also matrix_small, gritzman, vb
    python -m experiments.smallnorb --preset=efficient_smallnorb    crops of 48x48

The first paper uses its MNIST network unchanged and reports 2.7% test error; it does not state the
schedule. With --epochs=20 --schedule=cosine --ema=0.999 the first command has 5.96%, the mean of
three runs of 40 minutes to two hours on one core (docs/results/smallnorb.md). An epoch has 24,300
training images and takes about half as long as one of MNIST. The network standardizes each image,
as the authors' code does (--input_norm); the decoder, which ends in a sigmoid, sees pixels in
[0, 1]. With --noreconstruction images are standardized before they reach the network.

Images of less than 64x64 pixels are taken as prepared and not halved. The presets below have the
crops and distortions of their authors; see :mod:`capsjax.models.matrix`,
:mod:`capsjax.models.variational` and :mod:`capsjax.models.efficient` for what differs, and for the
flags of their schedules.
"""

from experiments.data.augment import square_crops
from experiments.tasks.base import Program
from experiments.tasks.random_crops import CropsConfig, random_crops
from experiments.training.command import run

# Hinton, Sabour & Frosst (2018), their released code. The paper normalizes whole images.
_MATRIX = square_crops(32, halve=True, order="distort, crop, normalize")
PUBLISHED = {
    "matrix": _MATRIX,
    "matrix_small": _MATRIX,
    # Gritzman (2019), in units of the standard deviation of the image
    "gritzman": square_crops(
        32, halve=True, order="normalize, crop, distort", brightness=2.0, contrast=(0.5, 1.5)
    ),
    # Ribeiro, Leontidis & Kollias (2020): no changes of brightness and contrast
    "vb": square_crops(
        32, halve=True, normalize="standardize_channels", brightness=0.0, contrast=(1.0, 1.0)
    ),
    # Mazzia, Salvetti & Chiaberge (2021). Images are normalized one by one here.
    "efficient_smallnorb": square_crops(
        48,
        resize=64,
        normalize="standardize_channels",
        order="normalize, crop, distort",
        brightness=2.0,
        contrast=(0.5, 1.5),
    ),
}
PROGRAM = Program(
    CropsConfig(program="smallnorb", dataset="smallnorb", preset="smallnorb"),
    random_crops(32, halve=True, published=PUBLISHED),
)


if __name__ == "__main__":
    run(PROGRAM)
