"""CapsNet on street-view house numbers, the small network of section 7 of the paper.

    python -m experiments.svhn                                 the paper reports 4.3% test error
    python -m experiments.svhn --reconstruction --routing_iterations=1

The network has 64 convolution channels, 16 types of 6-D primary capsules and 8-D class capsules, a
million parameters. The paper trains on the 73,257 images of the training set alone and reports 4.3%
test error. It does not state schedule and augmentation, so those of MNIST are used (50 epochs,
shifts of up to 2 pixels). No result has been measured here.
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
