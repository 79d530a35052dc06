"""Commands that use capsjax, run from the repository root: ``python -m experiments.mnist``.

The commands are the modules of this package; its folders hold what they are made of. The wheel
installs it as ``capsjax_experiments``, whose commands ``capsjax NAME`` runs.
"""

import os
import signal
import sys


def _end_at_once(*_) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)


def end_imports_at_once() -> None:
    """Makes Ctrl-C one line while a command is imported, until kernels.cli.run takes over."""
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_at_once)


if sys.argv[:1] == ["-m"]:  # a command is being imported, which takes seconds
    end_imports_at_once()


class UserError(Exception):
    """A cause of failure that the user of a command can fix.

    The message is one line that says what was wrong and what to do. Commands print it on
    standard error and end with exit status 2, see :func:`experiments.config.flags.run`. It is
    defined here so that reading data imports neither JAX nor the configuration.
    """
