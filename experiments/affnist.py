"""Robustness to affine transformations that are not in the training data: affNIST.

    python -m experiments.affnist                                MNIST, or the bundled digits
    python -m experiments.affnist --model=cnn --compare=RUN      a CNN of the same size
    python -m experiments.affnist --affnist_dir=FOLDER           the official test files
    python -m experiments.affnist --dataset=digits --preset=tiny --stop_at=90

Section 5.2 of Sabour, Frosst & Hinton (2017): training uses digits that are translated on a black
canvas (40x40 for MNIST) and not otherwise transformed, until 99.23% of the held-out digits are
recognized. The network is then tested on affNIST (Tieleman 2013), whose digits are also rotated,
sheared and scaled. Networks are compared at the same accuracy and not at the end of training.
Without the official files the test digits are transformed here, within the ranges of affNIST, and
called "synthetic affNIST". Response curves show the accuracy under each transformation separately,
alongside those of another run with --compare.
"""

from experiments.data.affnist_images import BORDER
from experiments.tasks.affnist import AFFNIST, AffnistConfig
from experiments.tasks.base import Program
from experiments.training.command import run

PROGRAM = Program(
    AffnistConfig(
        program="affnist",
        preset="affnist",
        max_shift=BORDER,
        validation_fraction=1 / 6,  # 10,000 of MNIST's, as in affNIST
    ),
    AFFNIST,
)


if __name__ == "__main__":
    run(PROGRAM)
