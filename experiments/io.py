"""What a run leaves on disk: config.json, metrics.jsonl, events, checkpoints, summary.json.

Every file is replaced in one move or appended line by line, so that a run killed at any
moment can be continued.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from experiments.config import Config
from experiments.errors import UserError


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one move."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(temporary, path)


@contextlib.contextmanager
def open_workdir(config: Config) -> Iterator[Path]:
    """Create the folder of a run, or open it again, for one process at a time.

    Nothing in an existing folder is changed.

    Raises:
      UserError: it can't be written, belongs to another configuration, or is in use.
    """
    workdir = Path(config.workdir or config.default_workdir())
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # The lock ends with the process, however that ends.
        lock = os.open(workdir / ".lock", os.O_CREAT | os.O_RDWR)
    except OSError as error:
        raise UserError(f"--workdir={workdir} can't be written: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path = workdir / "config.json"
        if path.exists():
            _check_same(config, path)
        yield workdir
    except BlockingIOError as error:
        raise UserError(f"another process is training in {workdir}") from error
    finally:
        os.close(lock)


def has_checkpoints(config: Config) -> bool:
    """Whether a run has been started and kept."""
    folder = Path(config.workdir or config.default_workdir()) / "checkpoints"
    return folder.is_dir() and any(folder.iterdir())


def write_config(config: Config, workdir: Path) -> None:
    """Write config.json."""
    write_json(workdir / "config.json", dataclasses.asdict(config))


def _check_same(config: Config, path: Path) -> None:
    try:
        stored = json.loads(path.read_text())
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


class Metrics:
    """metrics.jsonl, and TensorBoard events where tensorboardX is installed.

    Args:
      workdir: folder of the run.
      step: rows of later steps are removed, because the run continues from here.
    """

    def __init__(self, workdir: Path, step: int):
        self.path = workdir / "metrics.jsonl"
        self.rows = [row for row in read_rows(self.path) if row["step"] <= step]
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        os.replace(temporary, self.path)
        self._file = open(self.path, "a")
        self._board = _tensorboard(workdir, step)

    def write(self, row: dict[str, float | list[float]]) -> None:
        """Append a row; it must have a ``step``."""
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
        """Make sure that all rows are on the disk."""
        os.fsync(self._file.fileno())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()
        if self._board:
            self._board.close()


def read_rows(path: Path) -> list[dict]:
    """Rows of metrics.jsonl, none where it is not there."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
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


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x.shape for path, x in leaves}


class Checkpoints:
    """Orbax checkpoints of a training state, the last two kept.

    Args:
      workdir: folder of the run. read_only: change nothing, a training may be going on there.
    """

    def __init__(self, workdir: Path, *, read_only: bool = False):
        import orbax.checkpoint as ocp

        self._args, handler = ocp.args, ocp.StandardCheckpointHandler()
        if read_only:
            options = ocp.CheckpointManagerOptions(create=False)
        else:
            options = ocp.CheckpointManagerOptions(max_to_keep=2, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(
            (workdir / "checkpoints").absolute(), options=options, item_handlers=handler
        )

    def latest(self) -> int | None:
        """Step of the newest checkpoint."""
        return self._manager.latest_step()

    def save(self, state: Any, step: int) -> None:
        """Save in the background."""
        self._manager.save(step, args=self._args.StandardSave(state._asdict()))

    def restore(self, state: Any) -> Any:
        """The newest checkpoint, in the shapes and on the devices of ``state``.

        Raises:
          UserError: it can't be read.
        """
        step = self.latest()
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state._asdict()
        )
        try:
            stored = _shapes(self._manager.item_metadata(step)["params"])
            for path, shape in _shapes(target["params"]).items():
                # Orbax says it too, but leaves coroutines behind that nobody waits for.
                if stored.get(path) != shape:
                    raise ValueError(f"{path} is {stored.get(path)}, not {shape}")
            restored = self._manager.restore(step, args=self._args.StandardRestore(target))
        except Exception as error:  # Orbax raises many types for a damaged checkpoint
            reason = str(error).splitlines()[0]
            raise UserError(
                f"checkpoint {step} in {self._manager.directory} can't be read ({reason}); "
                "delete that folder to go on from an earlier one"
            ) from error
        return type(state)(**restored)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._manager.close()  # waits for the last save
