"""The ledger of a sweep: one JSON line for every run that ended, never changed afterwards.

A folder may hold several ledgers, of parts of a sweep on several machines or copied from elsewhere;
their union counts. A line is written with one call to the operating system under a lock and is on
the disk when :func:`append` returns, so that the failure of a machine loses only the runs in
progress.
"""

import base64
import functools
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from filelock import FileLock

from experiments.config import UserError
from experiments.files import BadFile, check, check_folder, one_line, parse, read_bytes
from experiments.files.forms import ENTRY

NAME = "ledger.jsonl"
MEASURED = " # "  # in a key: what follows was measured of a finished run
MOST_BYTES = 2**28  # of a ledger
MOST_BYTES_OF_A_LINE = 2**24


def make_folder(folder: Path) -> None:
    """Makes a folder that can be written.

    Raises:
      UserError: the folder can't be made or written, or holds links that lead out of it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} can't be written: {error.strerror}") from error
    check_folder(folder)
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder} can't be written")


def append(path: Path, entry: dict[str, Any]) -> None:
    """Adds an entry with the current time.

    Raises:
      UserError: the ledger is a link.
    """
    for place in (path, path.with_name(f".{path.name}.lock")):
        if place.is_symlink():
            raise UserError(f"{place} is a link, which is not followed; remove it")
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

    What is no entry is left out, which is said on standard error.

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
    if not os.path.lexists(path):
        return []
    try:
        text = read_bytes(path, MOST_BYTES)
        text.decode("utf-8-sig")
    except (BadFile, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read as a ledger: {one_line(error)}") from error
    bad: list[str] = []
    found, lines = [], text.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            found += [_entry(line)] if line.strip() else []
        except ValueError as error:
            if number < len(lines):  # or else it was being written when the machine failed
                bad.append(f"{path}, line {number} is left out: {one_line(error)[:99]}")
    if bad:
        say(bad[0] + (f", and {len(bad) - 1} more lines" if len(bad) > 1 else ""))
    return found


@functools.cache
def say(line: str) -> None:
    """Prints a line once: ledgers are read several times."""
    print(line, file=sys.stderr)


def _entry(line: bytes) -> dict:
    if len(line) > MOST_BYTES_OF_A_LINE:
        raise ValueError("too long")
    entry = check(parse(line), ENTRY, "the entry")
    count, packed = entry.get("summary", {}).get("test_examples"), entry.get("correct")
    if packed is not None and count is not None:
        if len(base64.b64decode(packed, validate=True)) != -(-count // 8):
            raise ValueError(f"'correct' is not about {count} examples")
    return entry


def merge(own: dict[str, dict], theirs: dict[str, dict]) -> dict[str, dict]:
    """Returns the entries of both; of a run that succeeded here the own one, and says differences.

    Args:
      own, theirs: entries by key.
    """
    different = []
    for key in own.keys() & theirs.keys():
        errors = [e.get("summary", {}).get("test_error") for e in (own[key], theirs[key])]
        if None not in errors and errors[0] != errors[1]:
            different.append(f"{one_line(key)}: own {errors[0]:.2f}%, theirs {errors[1]:.2f}%")
    for line in sorted(different):
        say(f"--merge: the own result is kept: {line}")
    failed = {key for key, entry in own.items() if "summary" not in entry}
    return {**theirs, **{k: e for k, e in own.items() if k not in failed or k not in theirs}}


def with_path_of(data: str, dataset: str, entries: dict[str, dict]) -> dict[str, dict]:
    """Returns the entries, those of equal arrays at another place under the key with this place.

    Args:
      data: checksum of the arrays.
      dataset: the value of ``--dataset``, a file of arrays.
      entries: by key.
    """
    found = {}
    for key, entry in entries.items():
        if data and entry.get("summary", {}).get("data_checksum") == data:
            _, mark, measured = key.partition(MEASURED)
            there = (w.startswith("--dataset=") and w.endswith(".npz") for w in words_of(key))
            here = zip(words_of(key), there)
            key = shlex.join(f"--dataset={dataset}" if own else word for word, own in here)
            key += mark + measured
        if key not in found or "summary" in entry and "summary" not in found[key]:
            found[key] = entry | {"key": key}
    return found


def words_of(key: str) -> list[str]:
    """Returns the words of the command of a key; none of a key that is no command."""
    try:
        return shlex.split(key.partition(MEASURED)[0])
    except ValueError:
        return []


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
