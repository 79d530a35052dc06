"""The ledger of a sweep: one JSON line for every run that ended, never changed afterwards.

A folder may hold several ledgers, of parts of a sweep on several machines or copied from elsewhere;
their union counts. A line is written with one call to the operating system under a lock and is on
the disk when :func:`append` returns, so that the failure of a machine loses only the runs in
progress.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from filelock import FileLock

from experiments.config import UserError

NAME = "ledger.jsonl"


def make_folder(folder: Path) -> None:
    """Makes a folder that can be written.

    Raises:
      UserError: the folder can't be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} can't be written: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder} can't be written")


def append(path: Path, entry: dict[str, Any]) -> None:
    """Adds an entry with the current time."""
    line = json.dumps(entry | {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})
    with FileLock(path.with_name(f".{path.name}.lock")), open(path, "ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        # A line that was cut off must not swallow this one.
        cut = size > 0 and file.read(1) != b"\n"
        file.write(("\n" * cut + line + "\n").encode())
        os.fsync(file.fileno())


def read(*places: Path) -> dict[str, dict]:
    """Returns the entry of every run by its key.

    A run that succeeded in any ledger has that entry, otherwise the entry of its last failure.

    Args:
      places: ledgers, and folders whose ``ledger*.jsonl`` are all read; those that do not exist
        are empty.

    Raises:
      UserError: a file can't be read.
    """
    entries: dict[str, dict] = {}
    for place in places:
        for path in sorted(place.glob("ledger*.jsonl")) if place.is_dir() else [place]:
            for entry in _lines(path):
                before = entries.get(entry["key"])
                if before is None or "summary" not in before or "summary" in entry:
                    entries[entry["key"]] = entry
    return entries


def _lines(path: Path) -> list[dict]:
    try:
        text = path.read_text("utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read as a ledger: {error}") from error
    found = []
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # the line that was being written when the machine failed
            continue
        if isinstance(entry, dict) and "key" in entry:
            found.append(entry)
    return found


def success(key: str, summary: dict, together: int) -> dict:
    """Returns the entry of a run that succeeded.

    Args:
      key: of the run.
      summary: its summary.json.
      together: number of runs that were trained together, itself included; the time is divided
        equally among them.
    """
    kept = {name: value for name, value in summary.items() if name != "test_correct"}
    return {
        "key": key,
        "seconds": round(summary["wall_seconds"] / together, 3),
        "together": together,
        "summary": kept,
        "correct": summary.get("test_correct"),
    }


def failure(key: str, reason: str) -> dict:
    """Returns the entry of a run that failed."""
    return {"key": key, "error": reason}
