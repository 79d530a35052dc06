"""metrics.jsonl of a run, and TensorBoard events where tensorboardX is installed."""

import json
import os
from pathlib import Path

from experiments.training.workdir import write_text


class Metrics:
    """Writes metrics.jsonl, and TensorBoard events where tensorboardX is installed.

    Args:
      workdir: folder of the run.
      step: rows of later steps are removed, because the run continues from here.
    """

    def __init__(self, workdir: Path, step: int):
        self.path = workdir / "metrics.jsonl"
        self.rows = [row for row in read_rows(self.path) if row["step"] <= step]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))
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

    def sync(self) -> None:
        """Makes sure that all rows are on the disk."""
        os.fsync(self._file.fileno())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()
        if self._board:
            self._board.close()


def read_rows(path: Path) -> list[dict]:
    """Returns the rows of metrics.jsonl, none where there is no such file."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text("utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:  # the line that was being written when the run was killed
            break
    return rows


def _tensorboard(workdir: Path, step: int):
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)
