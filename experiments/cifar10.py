"""CapsNet on CIFAR-10, as section 7 of the paper has it: crops, 64 primary types, leaky routing.

    python -m experiments.cifar10                              one network, 24x24 crops
    python -m experiments.cifar10 --ensemble=7                 the paper's 10.6%
    python -m experiments.cifar10 --dataset=digits --preset=tiny --steps=20    a minute's check

Convolutions are padded as in the authors' code, which trains each network for 600,000 steps of 128
images (about 1,600 epochs) and reaches 10.6% test error with seven. That has not been run here:
days on a GPU, by a guess. The data come from TensorFlow Datasets, or as arrays of your own
(--dataset=PATH.npz). Routing is leaky: a capsule may belong to none of the classes.
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
