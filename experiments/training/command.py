"""The main function of every command that trains."""

from experiments.config.flags import run as run_command
from experiments.tasks.base import Program
from experiments.training import loop


def run(program: Program) -> None:
    """Parses the flags of a program and trains, or continues, the run that they describe.

    See :func:`experiments.config.flags.run` for how a command ends.
    """
    run_command(lambda config: loop.run(program, config), program.defaults)
