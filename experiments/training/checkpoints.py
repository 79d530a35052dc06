"""Checkpoints of a training state, each with the checksums of its files.

A checkpoint is a folder ``checkpoints/STEP``. Beside the files of Orbax it holds config.json and
the rows of metrics.jsonl up to its step, from which damaged ones are written again, and
``checksums.json``, the SHA-256 of every file. All of them are there when the folder gets its name.
A checkpoint whose files have other checksums is set aside, and the one before it is used.
"""

import sys
from pathlib import Path
from typing import Any

import jax

from capsjax.functional import join, split
from experiments.config import Config, UserError
from experiments.files import BadFile, check_folder, one_line, read_json, sha256
from experiments.training import processes
from experiments.training.checkpoint_names import CHECKSUMS, CONFIG, ROWS, with_checksums

_FROM_ORBAX = "default/_METADATA"  # in every complete checkpoint, those of older versions too


def has_checkpoints(config: Config) -> bool:
    """Returns whether a run has been started and has a checkpoint."""
    return bool(_steps(config.folder() / "checkpoints"))


def _steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder, the newest first."""
    try:
        names = [path.name for path in folder.iterdir() if path.is_dir()]
    except OSError:
        return []
    return sorted((int(n) for n in names if n.isascii() and n.isdigit()), reverse=True)


def damage_of(checkpoint: Path) -> str:
    """Returns what is wrong with the files of a checkpoint, or nothing.

    Checkpoints of older versions have no checksums: they must be complete, and no more is known.
    """
    try:
        if not (checkpoint / CHECKSUMS).exists():
            return "" if (checkpoint / _FROM_ORBAX).is_file() else "it is incomplete"
        for name, digest in read_json(checkpoint / CHECKSUMS, {"*": str}).items():
            if not name or Path(name).is_absolute() or ".." in Path(name).parts:
                return f"{CHECKSUMS} names a file elsewhere"
            if sha256(checkpoint / name) != digest:
                return f"{one_line(name)} has another checksum"
    except (BadFile, OSError) as error:
        return str(error)
    return ""


def copy_of_config(workdir: Path) -> Path | None:
    """Returns the config.json that the newest sound checkpoint keeps, None where there is none."""
    places = (workdir / "checkpoints" / str(n) for n in _steps(workdir / "checkpoints"))
    found = (place / CONFIG for place in places if not damage_of(place))
    return next(filter(Path.is_file, found), None)


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x.shape for path, x in leaves}


def _stored(state) -> dict:
    """The fields of a state, without those that are empty."""
    fields = state._asdict()
    return {k: v for k, v in fields.items() if k not in ("stats", "average") or v}


class Checkpoints:
    """Writes and reads Orbax checkpoints of a training state, and keeps the last two.

    Opening sets checkpoints that are damaged aside, under the name ``STEP.damaged``, and says so.

    Args:
      workdir: folder of the run.
      read_only: change nothing, because a training run may be using the folder; damaged checkpoints
        are passed over.

    Raises:
      UserError: the folder is a link, or no folder.
    """

    def __init__(self, workdir: Path, *, read_only: bool = False):
        import orbax.checkpoint as ocp

        check_folder(workdir)
        self._folder, self._rows = (workdir / "checkpoints").absolute(), {}
        if self._folder.exists() and not self._folder.is_dir():
            raise UserError(f"{self._folder} is no folder; remove it, and training starts again")
        self._newest = self._find_sound(read_only)
        # Weights hardly get smaller, and compression takes longer than checksums.
        several = _in_one_of_several() if processes.count() > 1 else {}
        self._ocp, handler = ocp, ocp.PyTreeCheckpointHandler(use_compression=False, **several)
        if read_only:
            options = ocp.CheckpointManagerOptions(create=False, **several)
        else:
            self._folder.mkdir(parents=True, exist_ok=True)
            options = ocp.CheckpointManagerOptions(
                max_to_keep=2,
                create=False,
                cleanup_tmp_directories=True,
                temporary_path_class=with_checksums(self._rows),
                **several,
            )
        self._manager = ocp.CheckpointManager(self._folder, options=options, item_handlers=handler)

    def _find_sound(self, read_only: bool) -> int | None:
        """The step of the newest checkpoint without damage; others are set aside."""
        for step in _steps(self._folder):
            place = self._folder / str(step)
            if not (damage := damage_of(place)):
                return step
            if read_only and not place.exists():  # training has just replaced it by a newer one
                return self._find_sound(read_only)
            said = f"checkpoint {step} is damaged ({damage})"
            if not read_only:
                said += f" and set aside as {_set_aside(place)}"
            print(f"{said}; using the one before, or the start", file=sys.stderr)
        return None

    def latest(self) -> int | None:
        """Returns the step of the newest checkpoint at the time of opening, None for none."""
        return self._newest

    def rows(self) -> bytes | None:
        """Returns metrics.jsonl up to the step of :meth:`latest`; None where there is no copy."""
        path = self._folder / str(self._newest) / ROWS
        return path.read_bytes() if path.is_file() else None

    def save(
        self, state: Any, step: int, rows: tuple[Path, int] | None = None, reported: Any = None
    ) -> None:
        """Saves in the background.

        Args:
          state: of training. step: that it has done.
          rows: metrics.jsonl, and the number of its bytes up to this step.
          reported: the variables that the run reports, if they are others than those of the state.
        """
        if rows:
            self._rows[str(step)] = rows
        stored = _stored(state)
        if reported is not None:
            params, stats = split(reported)
            stored["reported"] = {"params": params} | ({"stats": stats} if stats else {})
        self._manager.save(step, args=self._ocp.args.PyTreeSave(stored))

    def restore(self, state: Any) -> Any:
        """Returns the newest checkpoint, with the shapes and on the devices of ``state``.

        Raises:
          UserError: it can't be read.
        """
        return self.restore_all(state)[0]

    def restore_variables(self, state: Any) -> Any:
        """Returns the variables that the run reports; see :meth:`restore`."""
        restored, reported = self.restore_all(state)
        return restored.variables if reported is None else reported

    def restore_all(self, state: Any) -> tuple[Any, Any]:
        """Returns the state and, if the run reports others than its last variables, those.

        Raises:
          UserError: it can't be read.
        """
        step = self.latest()
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _stored(state)
        )
        try:
            metadata = self._manager.item_metadata(step)
            if "reported" in metadata:
                parts = ("params", "stats")
                target["reported"] = {n: target[n] for n in parts if n in target}
            for part in ("params", "stats"):
                stored = _shapes(metadata.get(part, ()))
                for path, shape in _shapes(target.get(part, ())).items():
                    # Orbax says it too, but leaves coroutines behind that are never awaited.
                    if stored.get(path) != shape:
                        raise ValueError(f"{path} is {stored.get(path)}, not {shape}")
            restored = self._manager.restore(
                step,
                args=self._ocp.args.PyTreeRestore(
                    target,
                    restore_args=self._ocp.checkpoint_utils.construct_restore_args(target),
                ),
            )
        except Exception as error:  # Orbax raises many types for a damaged checkpoint
            reason = str(error).splitlines()[0]
            raise UserError(
                f"checkpoint {step} in {self._manager.directory} can't be read ({reason}); "
                f"to continue from an earlier one, delete {self._manager.directory / str(step)}"
            ) from error
        reported = restored.pop("reported", None)
        variables = None if reported is None else join(reported["params"], reported.get("stats"))
        return type(state)(**restored), variables

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            self._manager.close()  # waits for the last save
        except Exception:
            if kind is None:  # the first failure is the one to report
                raise


def _in_one_of_several() -> dict[str, Any]:
    """Options of Orbax by which a process waits for no other one: process 0 alone saves."""
    import orbax.checkpoint as ocp

    name = f"process_{jax.process_index()}"
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix=name,
    )
    return {"multiprocessing_options": alone}


def _set_aside(place: Path) -> str:
    """Renames a damaged checkpoint and returns its new name."""
    name, number = f"{place.name}.damaged", 1
    while (place.parent / name).exists():
        number += 1
        name = f"{place.name}.damaged-{number}"
    try:
        place.rename(place.parent / name)
    except OSError as error:
        raise UserError(f"{place} is damaged and can't be renamed: {error.strerror}") from error
    return name
