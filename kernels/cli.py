"""What all programs do alike: flags, errors that a user can mend, the commit they run."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from absl import app, flags, logging
from jax.errors import JaxRuntimeError


def run(
    main: Callable[..., None], errors: type[Exception] = ValueError, *, words: bool = False
) -> None:
    """Parse the flags, call ``main``, end in one line where the user erred.

    Args:
      main: what the program does. errors: that its user can mend.
      words: it takes words that are no flags, before, after and among flags, as arguments.

    Exit status 2 and ``error: ...`` on standard error for a wrong flag, for ``errors`` and where
    the device has too little memory; 130 when interrupted; 1, and not a word, when nobody reads
    what it prints.
    """

    def parse(argv):
        flags.FLAGS.set_gnu_getopt(words)
        try:
            rest = flags.FLAGS(argv)[1:]
            if rest and not words:
                raise flags.Error(f"unexpected argument {rest[0]!r}; flags look like --name=value")
        except flags.Error as error:
            _fail(error)
        return [argv[0], *rest]

    def wrapped(argv):
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # Orbax tells every step of every save
        try:
            main(*argv[1:])
        except errors as error:
            _fail(error)
        except JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            _fail(f"too little memory, try smaller batches: {str(error).splitlines()[0]}")
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    try:
        try:
            app.run(wrapped, flags_parser=parse)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever reads, head perhaps, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _fail(error: Exception | str) -> None:
    print("error:", *str(error).split(), file=sys.stderr)
    sys.exit(2)


def commit() -> str | None:
    """The commit of the code that runs, with ``+changes`` when files differ from it."""
    root = Path(__file__).resolve().parent.parent

    def git(*arguments):
        return subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
