"""CapsNet on street view house numbers: the paper's smaller network, without decoder.

    python -m experiments.svhn                                 the paper's 4.3%
    python -m experiments.svhn --reconstruction --routing_iterations=1

64 convolution channels, 16 types of 6-D primary capsules, 8-D class capsules: a million
parameters. The paper trains on the 73,257 images of the training set alone and reports 4.3% test
error; schedule and augmentation are not stated, so these are MNIST's (50 epochs, shifts of up to 2
pixels). It has not been run here: less work a step than MNIST, by the sizes.
"""

from experiments.config import Config
from experiments.tasks.base import Program
from experiments.tasks.classification import CLASSIFICATION
from experiments.training.command import run

PROGRAM = Program(
    Config(program="svhn", dataset="svhn_cropped", preset="svhn", reconstruction=False),
    CLASSIFICATION,
)


if __name__ == "__main__":
    run(PROGRAM)
