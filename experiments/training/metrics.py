"""metrics.jsonl of a run, and TensorBoard events where tensorboardX is installed."""

import json
import os
import sys
from pathlib import Path

from experiments.files import (
    BadFile,
    check,
    is_integer,
    is_number,
    one_line,
    parse,
    read_bytes,
    write_text,
)

MOST_BYTES = 2**28  # of metrics.jsonl
MOST_BYTES_OF_A_ROW = 2**16


class Metrics:
    """Writes metrics.jsonl, and TensorBoard events where tensorboardX is installed.

    Args:
      workdir: folder of the run.
      step: rows of later steps are removed, because the run continues from here.
      copy: metrics.jsonl up to this step as a checkpoint keeps it, which takes the place of rows
        that are damaged or lost; None for a checkpoint of an older version.

    Raises:
      UserError: it can't be written.
    """

    def __init__(self, workdir: Path, step: int, copy: bytes | None = None):
        self.path = workdir / "metrics.jsonl"
        found, damage = _read(self.path)
        self.rows = [row for row in found if row["step"] <= step]
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        if copy is not None:
            stored, _ = scan(copy)
            whole = "".join(json.dumps(row) + "\n" for row in stored)
            if whole != text:
                damage = damage or f"{len(self.rows)} of {len(stored)} rows"
                damage += f"; its {len(stored)} rows are taken from checkpoint {step}"
                self.rows, text = stored, whole
        if damage:
            print(f"{self.path} is repaired: {damage}", file=sys.stderr)
        write_text(self.path, text)
        self._file = open(self.path, "a", encoding="utf-8")
        self._board = _tensorboard(workdir, step)

    def write(self, row: dict[str, float | list[float]]) -> None:
        """Appends a row; it must have a ``step``."""
        self.rows.append(row)
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._board:
            for name, value in row.items():
                if name in ("step", "epoch", "seconds"):
                    continue
                values = enumerate(value) if isinstance(value, list) else [("", value)]
                for which, number in values:
                    self._board.add_scalar(f"{name}{which}", number, row["step"])

    def sync(self) -> tuple[Path, int]:
        """Makes sure that all rows are on the disk, and returns the file and its size."""
        os.fsync(self._file.fileno())
        return self.path, self._file.tell()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()
        if self._board:
            self._board.close()


def read_rows(path: Path) -> list[dict]:
    """Returns the rows of metrics.jsonl, none where there is no such file.

    What is no row is left out, which is said on standard error.
    """
    rows, damage = _read(path)
    if damage:
        print(f"{path} is damaged: {damage}", file=sys.stderr)
    return rows


def _read(path: Path) -> tuple[list[dict], str]:
    if not os.path.lexists(path):
        return [], ""
    try:
        return scan(read_bytes(path, MOST_BYTES))
    except BadFile as error:
        return [], str(error)


def scan(text: bytes) -> tuple[list[dict], str]:
    """Returns the rows of a text, in the order of their steps, and what else it contains.

    The last line may be cut off, because the run was killed while it was being written.
    """
    rows, bad, seen, last = [], [], {}, -1
    lines = text.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line and number == len(lines):
            continue
        try:
            row = _row(line)
            # A step has at most one row of each kind.
            kind = row["step"], *row
            if kind in seen or row["step"] < last:
                raise ValueError(f"step {row['step']} again")
        except ValueError as error:
            if number < len(lines):
                bad.append(f"line {number} ({one_line(error)[:80]})")
            continue
        seen[kind], last = True, row["step"]
        rows.append(row)
    more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
    return rows, f"{bad[0]}{more} left out" if bad else ""


def _row(line: bytes) -> dict:
    if len(line) > MOST_BYTES_OF_A_ROW:
        raise ValueError("too long")
    where = {"step": is_integer, "epoch": is_number, "seconds": is_number}
    return check(parse(line.decode()), where | {"*": _is_value}, "the row")


def _is_value(value) -> bool:
    return is_number(value) or isinstance(value, list) and all(map(is_number, value))


def _tensorboard(workdir: Path, step: int):
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)
