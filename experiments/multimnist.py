"""Two overlapping digits: classify both, and assign the pixels to them.

    python -m experiments.multimnist                           pairs of MNIST digits, 36x36
    python -m experiments.multimnist --shift=6                 the authors' command, less overlap
    python -m experiments.multimnist --model=cnn               the paper's baseline
    python -m experiments.multimnist --dataset=digits --preset=small --epochs=16

The last command takes minutes on 2 cores; it is a check and not a result. The test error is the
percentage of pairs whose two classes do not have the two largest scores; guessing gives 97.8%. The
paper reports 5.2% (CapsNet, three routing iterations, reconstruction), 7.5% (one iteration) and
8.1% (CNN) after 60 million training pairs, about a thousand epochs of 60,000, which has not been
run here. An epoch visits every digit once, each time with another partner. summary.json also has
the errors by overlap, and how well the reconstructions segment the image.
"""

from experiments.tasks.base import Program
from experiments.tasks.multimnist import MULTIMNIST, MultiMNISTConfig
from experiments.training.command import run

PROGRAM = Program(MultiMNISTConfig(program="multimnist", preset="multimnist"), MULTIMNIST)


if __name__ == "__main__":
    run(PROGRAM)
