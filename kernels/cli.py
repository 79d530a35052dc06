"""What all commands share: parsing flags, reporting errors of the user, the commit they run."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from absl import app, flags, logging
from jax.errors import JaxRuntimeError


def run(
    main: Callable[..., None],
    errors: type[Exception] = ValueError,
    *,
    words: bool = False,
    define: Callable[[list[str]], None] = lambda arguments: None,
) -> None:
    """Parses the flags, calls ``main``, and reports an error of the user in one line.

    The exit status is 2, after ``error: ...`` on standard error, for a wrong flag, for ``errors``
    and if the device has too little memory; 130 if interrupted; and 1, silently, if the reader of
    standard output has closed it.

    Args:
      main: the command.
      errors: exceptions that the user can fix.
      words: whether the command takes positional arguments, before, after and among flags.
      define: defines flags that depend on the arguments.
    """

    def parse(argv):
        flags.FLAGS.set_gnu_getopt(words)
        try:
            define(argv[1:])
            rest = flags.FLAGS(argv)[1:]
            if rest and not words:
                raise flags.Error(f"unexpected argument {rest[0]!r}; flags look like --name=value")
        except (flags.Error, errors) as error:
            _fail(error)
        return [argv[0], *rest]

    def wrapped(argv):
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # Orbax logs every step of every save
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
    except BrokenPipeError:  # the reader, such as head, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _fail(error: Exception | str) -> None:
    print("error:", *str(error).split(), file=sys.stderr)
    sys.exit(2)


def commit() -> str | None:
    """Returns the git commit of the code, with ``+changes`` if files differ from it.

    None for an installed copy, even if the folder of the installation is inside a repository.
    """
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None

    def git(*arguments):
        return subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
