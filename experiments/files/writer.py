"""The writer of every file of a run, a sweep or a report.

A temporary file of a name that nobody can guess is created in the same folder, which fails where it
exists already, and then takes the place of the old file. So a file is there whole or not at all,
and a link with its name is replaced, not followed.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments import UserError
from experiments.files.text import one_line

_UMASK = os.umask(0o077)
os.umask(_UMASK)
SUBFOLDERS = ("checkpoints", "figures", "tensorboard", "profile")  # of a run


@contextlib.contextmanager
def fresh(path: Path | str) -> Iterator[Path]:
    """Gives the path of an empty temporary file, which replaces ``path`` at the end of the block.

    It has the suffix of ``path``. If the block fails, it is removed.

    Raises:
      UserError: ``path`` is a folder.
      OSError: it can't be written.
    """
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        raise UserError(f"{one_line(path)} is a folder and can't be written as a file; remove it")
    # A short name: that of the file may be as long as names can be.
    descriptor, name = tempfile.mkstemp(path.suffix[:16], ".new-", path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_UMASK)  # only for its owner until now
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def fresh_folder(path: Path | str, flag: str) -> Iterator[Path]:
    """Gives an empty temporary folder, which becomes ``path`` at the end of the block.

    If the block fails, it is removed, so that there is a whole folder or none.

    Args:
      path: where nothing is yet.
      flag: that names it, for messages.

    Raises:
      UserError: something is there, or it can't be written.
    """
    path = Path(path)
    if path.is_symlink() or path.exists():
        raise UserError(f"--{flag}={one_line(path)} exists already; name a new folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=path.parent))
    except OSError as error:
        raise UserError(f"--{flag}={one_line(path)} can't be written: {error.strerror}") from error
    try:
        yield temporary
        os.chmod(temporary, 0o777 & ~_UMASK)  # only for its owner until now
        os.rename(temporary, path)
    except OSError as error:
        raise UserError(f"--{flag}={one_line(path)} can't be written: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path | str, text: str) -> None:
    """Writes a text file in one move."""
    with fresh(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path | str, value: Any) -> None:
    """Writes a JSON file in one move."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def check_folder(folder: Path) -> None:
    """Refuses a folder of a run whose subfolders are links, which lead out of it, or files.

    Raises:
      UserError: one is.
    """
    for name in (*SUBFOLDERS, ".lock"):
        path = folder / name
        if path.is_symlink():
            raise UserError(f"{one_line(path)} is a link, which is not followed; remove it")
        if path.exists() and path.is_dir() != (name in SUBFOLDERS):
            raise UserError(f"{one_line(path)} is in the way: remove it")
