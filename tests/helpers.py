"""What many tests share."""

import pathlib

from experiments.tasks.registry import find_program
from experiments.training import loop, setup

ROOT = pathlib.Path(__file__).resolve().parent.parent


def train(config):
    """Trains a run by the program that its configuration names; returns the summary."""
    return loop.run(find_program(config.program), config)


def prepare_run(config, dataset=None):
    """Returns the setup of a run of the program that its configuration names."""
    return setup.prepare(find_program(config.program), config, dataset)
