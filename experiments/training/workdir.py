"""The folder of a run: opened by one process at a time, its files replaced in one move.

A run that is killed at any moment can be continued.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from experiments.config import Config, UserError, names_of


def write_text(path: Path, text: str) -> None:
    """Writes a file in one move, so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file in one move."""
    write_text(path, json.dumps(value, indent=2) + "\n")


@contextlib.contextmanager
def open_workdir(config: Config) -> Iterator[Path]:
    """Creates the folder of a run, or opens it again, for one process at a time.

    Nothing in an existing folder is changed.

    Raises:
      UserError: it can't be written, belongs to another configuration, or is in use.
    """
    workdir = config.folder()
    # The operating system releases the lock when the process ends, however that ends.
    lock = FileLock(workdir / ".lock", timeout=0)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise UserError(f"another process is training in {workdir}") from error
    except OSError as error:
        raise UserError(f"--workdir={workdir} can't be written: {error.strerror}") from error
    try:
        path = workdir / "config.json"
        if path.exists():
            _check_same(config, path)
        yield workdir
    finally:
        lock.release()


def write_config(config: Config, workdir: Path) -> None:
    """Writes config.json."""
    write_json(workdir / "config.json", dataclasses.asdict(config))


def _check_same(config: Config, path: Path) -> None:
    try:
        stored = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); choose another --workdir") from error
    later = names_of(config, "later")  # not in the folders of older runs
    stored = {name: getattr(Config, name) for name in later} | stored
    different = [
        f"{name}={stored.get(name)} there, {value} here"
        for name, value in (config.identity() | {n: getattr(config, n) for n in later}).items()
        if stored.get(name) != value
    ]
    if different:
        raise UserError(
            f"{path.parent} holds another run ({'; '.join(different)}); choose another --workdir"
        )
