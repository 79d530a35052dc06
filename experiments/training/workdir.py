"""The folder of a run: opened by one process at a time, its files replaced in one move.

A run that is killed at any moment can be continued.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from experiments.config import Config, UserError
from experiments.files import check_folder, write_json


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
        check_folder(workdir)
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
    different = [
        f"{name}={stored.get(name)} there, {value} here"
        for name, value in config.identity().items()
        if stored.get(name) != value
    ]
    if different:
        raise UserError(
            f"{path.parent} holds another run ({'; '.join(different)}); choose another --workdir"
        )
