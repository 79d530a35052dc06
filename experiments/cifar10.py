"""CapsNet on CIFAR-10, as in section 7 of the paper: crops, 64 primary types, leaky routing.

    python -m experiments.cifar10                              one network on 24x24 crops
    python -m experiments.cifar10 --ensemble=7                 the paper reports 10.6% test error
    python -m experiments.cifar10 --dataset=digits --preset=tiny --steps=20    one minute, a check

Convolutions are padded as in the authors' code, which trains each network for 600,000 steps of 128
images (about 1,600 epochs) and reaches 10.6% test error with seven networks. This has not been run
here; we estimate that it takes days on a GPU. The data come from TensorFlow Datasets, or are your
own arrays (--dataset=PATH.npz). With leaky routing a capsule may be assigned to no class.
"""

from experiments.tasks.base import Program
from experiments.tasks.random_crops import CropsConfig, random_crops
from experiments.training.command import run

PROGRAM = Program(
    CropsConfig(program="cifar10", dataset="cifar10", preset="cifar10", reconstruction=False),
    random_crops(24, flip=True),
)


if __name__ == "__main__":
    run(PROGRAM)
