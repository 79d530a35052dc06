"""CapsNet on smallNORB: stereo pairs of toys, halved to 48x48 pixels, crops of 32x32.

    python -m experiments.smallnorb                            the paper reports 2.7% test error
    python -m experiments.smallnorb --noreconstruction         standardized pixels

The paper uses its MNIST network unchanged and reports 2.7% test error; it does not state the
schedule, and no result has been measured here. An epoch has 24,300 training images and takes about
half as long as one of MNIST. The decoder ends in a sigmoid, so that with reconstruction pixels stay
in [0, 1]; --noreconstruction standardizes them, as the authors' code does.
"""

from experiments.tasks.base import Program
from experiments.tasks.random_crops import CropsConfig, random_crops
from experiments.training.command import run

PROGRAM = Program(
    CropsConfig(program="smallnorb", dataset="smallnorb", preset="smallnorb"),
    random_crops(32, halve=True),
)


if __name__ == "__main__":
    run(PROGRAM)
