"""Commands that use capsjax, run from the repository root: ``python -m experiments.mnist``.

The commands are the modules of this package; its folders hold what they are made of. The wheel
installs it as ``capsjax_experiments``, whose commands ``capsjax NAME`` runs.
"""

import os
import signal
import sys

TUNABLES, HUGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
STARTED_AGAIN = "CAPSJAX_STARTED_AGAIN"  # in the environment of processes that start others


def _end_at_once(*_) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)


def end_imports_at_once() -> None:
    """Makes Ctrl-C one line while a command is imported, until kernels.cli.run takes over."""
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_at_once)


def take_huge_pages() -> None:
    """Starts the process of a command again with huge pages on Linux.

    It does not where the user has set GLIBC_TUNABLES.

    A call computes in hundreds of megabytes that the C library of Linux hands back after it. For
    the next call the kernel has to provide them again, page by page, and pages of 2 MiB are fewer
    than those of 4 KiB. The library reads what it is to do when a process starts.
    """
    if sys.platform == "linux" and sys.executable and not {TUNABLES, STARTED_AGAIN} & {*os.environ}:
        os.environ |= {TUNABLES: HUGE_PAGES, STARTED_AGAIN: "1"}
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def inherited_environment() -> dict[str, str]:
    """Returns the environment as it was before :func:`take_huge_pages`."""
    ours = (TUNABLES, STARTED_AGAIN) if STARTED_AGAIN in os.environ else ()
    return {name: value for name, value in os.environ.items() if name not in ours}


if sys.argv[:1] == ["-m"]:  # a command is being imported, which takes seconds
    if any(part.removeprefix("-m").split(".")[0] == __name__ for part in sys.orig_argv):
        take_huge_pages()
    end_imports_at_once()


class UserError(Exception):
    """A cause of failure that the user of a command can fix.

    The message is one line that says what was wrong and what to do. Commands print it on
    standard error and end with exit status 2, see :func:`experiments.config.flags.run`. It is
    defined here so that reading data imports neither JAX nor the configuration.
    """
