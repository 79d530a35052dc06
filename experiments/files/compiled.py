"""Checksums of compiled programs, so that damage to JAX's compilation cache is not run.

JAX looks an entry up by its name, which is a hash of the program, and believes its contents. An
entry never changes once it is written, so one whose contents are others than before is damaged, or
another entry has taken its place.
"""

import contextlib
import sys
import time
from pathlib import Path

from filelock import FileLock, Timeout

from experiments import UserError
from experiments.files.reader import BadFile, read_json, sha256
from experiments.files.writer import write_json

CHECKSUMS, LOCK = "checksums.json", ".checksums.lock"
WRITTEN = 60  # seconds, after which an entry is not being written any more


def check_programs(folder: Path) -> None:
    """Removes the entries of a compilation cache that have changed since they were first seen.

    It says so in one line; JAX compiles them again. A cache that another process is checking, or
    that can't be written, is checked as far as possible.

    Args:
      folder: of the cache, which may be missing.

    Raises:
      UserError: an entry has changed and can't be removed.
    """
    if not folder.is_dir():
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(FileLock(folder / LOCK, timeout=10))
        except (OSError, Timeout):
            pass
        try:
            known = read_json(folder / CHECKSUMS, {"*": str})
        except BadFile:  # there is none yet, or it is damaged: as if all were seen first
            known = {}
        found, changed = _checksums(folder), []
        for name, (digest, _) in found.items():
            if known.get(name, digest) != digest:
                changed.append(name)
                _remove(folder / name)
        kept = {n: d for n, (d, age) in found.items() if n not in changed and age > WRITTEN}
        if kept != known:
            with contextlib.suppress(OSError):
                write_json(folder / CHECKSUMS, kept)
    if changed:
        print(
            f"{len(changed)} compiled programs in {folder} have changed since they were written, "
            f"and are compiled again: {changed[0][:60]}",
            file=sys.stderr,
        )


def _checksums(folder: Path) -> dict[str, tuple[str, float]]:
    """The SHA-256 and the age in seconds of every entry; other files are not read as programs."""
    found = {}
    for path in sorted(folder.glob("*-cache")):
        with contextlib.suppress(BadFile, OSError):  # another process has removed it
            found[path.name] = sha256(path), abs(time.time() - path.stat().st_mtime)
    return found


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"the compiled program {path} has changed and can't be removed ({error.strerror}); "
            "choose another --cache_dir"
        ) from error
