"""Robustness to affine transformations that were never trained on: affNIST.

    python -m experiments.affnist                                MNIST, or the bundled digits
    python -m experiments.affnist --model=cnn --compare=RUN      a CNN of the same size
    python -m experiments.affnist --affnist_dir=FOLDER           the official test files
    python -m experiments.affnist --dataset=digits --preset=tiny --stop_at=90

Section 5.1 of Sabour, Frosst & Hinton (2017): digits anywhere on a black canvas, 40x40 for MNIST,
moved but not otherwise transformed, are trained on until 99.23% of held-out ones are recognised;
then the network sees affNIST (Tieleman 2013), whose digits are also rotated, sheared and scaled.
Networks are compared at the same accuracy, not at the end of training. Without the official files
the test digits are transformed here, within affNIST's ranges: "synthetic affNIST". Response curves
show accuracy under each transformation alone; those of another run are drawn beside them.
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
