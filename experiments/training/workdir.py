"""The folder of a run: opened by one process at a time, its files replaced in one move.

A run that is killed at any moment can be continued.
"""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from filelock import FileLock, Timeout

from experiments.config import Config, UserError
from experiments.files import BadFile, check_folder, is_plain, read_json, write_json
from experiments.training import processes
from experiments.training.checkpoints import copy_of_config, has_checkpoints
from experiments.training.identity import FORM, RECORDED, differences, other_versions

FORM_OF_RECORD = {f"{RECORDED}?": FORM, "*": is_plain}


@contextlib.contextmanager
def open_workdir(
    config: Config, record: Mapping[str, Any] = MappingProxyType({})
) -> Iterator[Path]:
    """Creates the folder of a run, or opens it again, for one process at a time.

    Nothing in an existing folder is changed. Of several processes of one run the first one alone
    opens it.

    Args:
      config: resolved.
      record: contents of what the run reads, see :mod:`experiments.training.identity`.

    Raises:
      UserError: it can't be written, belongs to another configuration, or is in use.
    """
    workdir = config.folder()
    if not processes.is_first():
        yield workdir
        return
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
        _check_same(config, record, workdir)
        yield workdir
    finally:
        lock.release()


def write_config(config: Config, workdir: Path, record: Mapping[str, Any] | None = None) -> None:
    """Writes config.json: the settings, and what the run is trained on.

    What an earlier one has recorded of sources that are not there any more is kept.
    """
    recorded = {}
    if record:
        with contextlib.suppress(BadFile):  # it is about to be written
            recorded = read_json(workdir / "config.json", FORM_OF_RECORD).get(RECORDED, {})
        recorded = {RECORDED: recorded | dict(record)}
    write_json(workdir / "config.json", dataclasses.asdict(config) | recorded)


def _check_same(config: Config, record: Mapping[str, Any], workdir: Path) -> None:
    stored = _stored(config, workdir)
    if stored is None:
        return
    if different := differences(config, record, stored):
        raise UserError(
            f"{workdir} holds another run ({'; '.join(different)}); choose another --workdir"
        )
    if line := other_versions(record, stored):
        print(f"continuing {workdir} with other versions: {line}", file=sys.stderr)


def _stored(config: Config, workdir: Path) -> dict | None:
    """The contents of config.json, or of the copy in a checkpoint if it is damaged or missing."""
    path, form = workdir / "config.json", {f"{name}?": is_plain for name in vars(config)}
    form |= {f"{RECORDED}?": FORM, "program": str}
    started = has_checkpoints(dataclasses.replace(config, workdir=str(workdir)))
    if not os.path.lexists(path) and not started:
        return None
    try:
        return read_json(path, form)
    except BadFile as error:
        with contextlib.suppress(BadFile):
            other = read_json(path, {"program": str, "*": lambda value: True})
            if other["program"] != config.program:  # with settings that this one has not
                return other
        copy = copy_of_config(workdir)
        if copy is None:
            raise UserError(
                f"{error}; it says which run this is: bring it back, or choose another --workdir"
            ) from error
        print(f"{error}; the copy in checkpoint {copy.parent.name} is used", file=sys.stderr)
        return read_json(copy, form)
