"""What is settled on the device before the first step of a training program."""

from collections.abc import Callable

from experiments.tasks.base import Setup
from experiments.training import pieces, routing_trial


def before_first_step(setup: Setup, make_body: Callable, runs: int = 1) -> Setup:
    """Settles the pieces of a batch, and whether kernels are used.

    Args:
      setup: of the run.
      make_body: :func:`experiments.training.chunks.chunk_body`.
      runs: the number of runs that are trained by one program.
    """
    setup = pieces.choose(setup, make_body)
    routing_trial.settle(setup, runs)
    return setup
