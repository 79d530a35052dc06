"""CapsNet, or the paper's CNN baseline, on MNIST and other image-classification data.

    python -m experiments.mnist                      MNIST, or offline the bundled digits
    python -m experiments.mnist --dataset=digits     1.1% test error after 2 to 4 minutes
    python -m experiments.mnist --dataset=mnist --recipe=official --seed=1
    python -m experiments.mnist --dataset=fashion_mnist --model=cnn
    python -m experiments.mnist --epochs=20 --schedule=cosine --ema=0.999
                                                     0.43% after two hours on a CPU core

Running the same command again continues a run that was interrupted. Measured results are in
docs/results/.
"""

from experiments.config import Config
from experiments.tasks.base import Program
from experiments.tasks.classification import CLASSIFICATION
from experiments.training.command import run

PROGRAM = Program(Config(program="mnist"), CLASSIFICATION)


if __name__ == "__main__":
    run(PROGRAM)
