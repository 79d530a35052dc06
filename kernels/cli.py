"""What all commands share: parsing flags, reporting errors of the user, the commit they run."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from absl import app, flags, logging
from jax.errors import JaxRuntimeError

# Errors of the operating system that are no defect of a program.
OF_THE_MACHINE = {
    getattr(errno, name)
    for name in "ENOSPC EDQUOT EACCES EPERM EROFS EMFILE ENFILE EIO ENAMETOOLONG".split()
    + "EISDIR ENOTDIR ENOENT EFBIG ELOOP ENOMEM ENXIO".split()
    if hasattr(errno, name)
}

MOST_FLAGS = 2**20  # bytes of a file of flags

# The same in errors of libraries that are not OSError.
SIGNS = ("No space left on device", "Disk quota exceeded", "File too large", "Too many open files")
SIGNS += ("Read-only file system", "Permission denied")


def run(
    main: Callable[..., None],
    errors: type[Exception] = ValueError,
    *,
    words: bool = False,
    define: Callable[[list[str]], None] = lambda arguments: None,
) -> None:
    """Parses the flags, calls ``main``, and reports an error of the user in one line.

    The exit status is 2, after ``error: ...`` on standard error, for a wrong flag, for ``errors``
    and if the device has too little memory or the disk is full; 130 if interrupted; and 1,
    silently, if the reader of standard output has closed it.

    Args:
      main: the command.
      errors: exceptions that the user can fix.
      words: whether the command takes positional arguments, before, after and among flags.
      define: defines flags that depend on the arguments.
    """

    def parse(argv):
        flags.FLAGS.set_gnu_getopt(words)
        try:
            for word in argv[1:] if words else ():
                # A pattern of the shell such as *.png must not give flags.
                if word.startswith("-") and os.path.lexists(word):
                    raise flags.Error(f"{word!r} is a file; name it ./{word}, or all by ./*")
            _check_flag_files(argv[1:], set())
            define(argv[1:])
            rest = flags.FLAGS(argv)[1:]
            if rest and not words:
                raise flags.Error(f"unexpected argument {rest[0]!r}; flags look like --name=value")
        except (flags.Error, errors, ValueError) as error:
            _fail(error)
        return [argv[0], *rest]

    def wrapped(argv):
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # Orbax logs every step of every save
            logging.get_absl_logger().addFilter(_not_of_orbax)
        try:
            main(*argv[1:])
        except errors as error:
            _fail(error)
        except BrokenPipeError:
            raise
        except Exception as error:
            if not (reason := _reason(error)):
                raise
            _fail(reason, at_once=True)
        except KeyboardInterrupt:
            _end("interrupted", 130)

    _take_signals()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names of files may be no UTF-8
    try:
        try:
            app.run(wrapped, flags_parser=parse)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _not_of_orbax(record) -> bool:
    """Returns whether to show a line of the log: Orbax raises every error that it logs."""
    return "orbax" not in Path(record.pathname).parts


def _check_flag_files(words: list[str], seen: set[str]) -> None:
    """Refuses flag files that never end, and those that they name: absl reads whatever it is."""
    for word, following in zip(words, [*words, ""][1:], strict=True):
        name, given, path = word.partition("=")
        path = os.path.expanduser(path if given else following)
        if name not in ("-flagfile", "--flagfile") or not path or path in seen:
            continue
        if not os.path.isfile(path) or os.path.getsize(path) > MOST_FLAGS:
            raise flags.Error(f"--flagfile={path} is no file of at most {MOST_FLAGS:,} bytes")
        with open(path, encoding="utf-8") as file:  # what is not UTF-8 is a ValueError
            _check_flag_files(file.read().split(), seen | {path})


def _reason(error: BaseException | None) -> str:
    """Returns in one line what of this machine made an exception, or nothing for a defect."""
    while error is not None:
        text = (str(error).splitlines() or [""])[0]
        if isinstance(error, OSError) and error.errno in OF_THE_MACHINE:
            where = f"{error.filename}: " if error.filename else ""
            return f"{where}{error.strerror}; what was saved before is kept"
        if found := [sign for sign in SIGNS if sign in str(error)]:
            return f"{found[0]}; what was saved before is kept: {text[:200]}"
        if isinstance(error, JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
            return f"too little memory; smaller images, --preset or batches need less: {text}"
        threads = isinstance(error, RuntimeError) and "can't start new thread" in text
        if threads or isinstance(error, MemoryError):
            return f"too little memory; smaller images, --preset or batches need less: {text}"
        error = error.__cause__ or error.__context__
    return ""


def _fail(error: Exception | str, *, at_once: bool = False) -> None:
    line = " ".join(["error:", *str(error).split()])
    # Names in messages may hold what moves the cursor of a terminal.
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    if at_once:
        _end(line, 2)
    print(line, file=sys.stderr)
    sys.exit(2)


def _end(line: str, status: int) -> None:
    """Prints a line and ends at once: threads that still write would print what fails."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(status)


def _take_signals() -> None:
    """Makes the first Ctrl-C an exception again, and lets the second one end the process at once.

    During imports ``experiments`` ends at once. A hangup is an interruption, too, unless ``nohup``
    has turned it off.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    sys.unraisablehook = _unraisable
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupt)
    hangup = getattr(signal, "SIGHUP", None)
    if hangup and signal.getsignal(hangup) != signal.SIG_IGN:
        signal.signal(hangup, _stop)


def _interrupt(*_) -> None:
    signal.signal(signal.SIGINT, _stop)
    raise KeyboardInterrupt


def _stop(number: int = signal.SIGINT, *_) -> None:
    """Ends the process at once. It may be in the middle of writing to a stream of Python."""
    with contextlib.suppress(OSError):
        os.write(2, b"interrupted\n")
    os._exit(128 + number)


def _unraisable(found) -> None:
    """Prints an exception that can be raised to nobody, such as in ``__del__``.

    If it is Ctrl-C, the process ends. Orbax raises the first error of the writes of a checkpoint
    and closes the event loop that the others, in threads of TensorStore, still call: these are
    left out.
    """
    if issubclass(found.exc_type, KeyboardInterrupt):
        _stop()
    if str(found.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(found)


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
