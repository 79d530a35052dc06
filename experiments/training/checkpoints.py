"""Checkpoints of a training state."""

from pathlib import Path
from typing import Any

import jax

from capsjax.functional import join, split
from experiments.config import Config, UserError


def has_checkpoints(config: Config) -> bool:
    """Returns whether a run has been started and has a checkpoint."""
    folder = config.folder() / "checkpoints"
    return folder.is_dir() and any(folder.iterdir())


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x.shape for path, x in leaves}


def _stored(state) -> dict:
    """The fields of a state, without those that are empty."""
    fields = state._asdict()
    return {k: v for k, v in fields.items() if k not in ("stats", "average") or v}


class Checkpoints:
    """Writes and reads Orbax checkpoints of a training state, and keeps the last two.

    Args:
      workdir: folder of the run.
      read_only: change nothing, because a training run may be using the folder.
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
        """Returns the step of the newest checkpoint, None where there is none."""
        return self._manager.latest_step()

    def save(self, state: Any, step: int, reported: Any = None) -> None:
        """Saves in the background, with the variables that the run reports if it has others."""
        stored = _stored(state)
        if reported is not None:
            params, stats = split(reported)
            stored["reported"] = {"params": params} | ({"stats": stats} if stats else {})
        self._manager.save(step, args=self._args.StandardSave(stored))

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
            restored = self._manager.restore(step, args=self._args.StandardRestore(target))
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

    def __exit__(self, *_):
        self._manager.close()  # waits for the last save
