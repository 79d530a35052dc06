"""The files of a run of several processes: the first one reads and writes them, for all.

The others need no disk in common with it. Its checkpoints are those of a run of one process, so a
run continues with any number of processes and devices.
"""

import contextlib
from pathlib import Path
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from experiments.training import collectives, processes
from experiments.training.checkpoints import Checkpoints
from experiments.training.metrics import Metrics


def open_checkpoints(workdir: Path) -> Any:
    """Returns the checkpoints of a run, a context like :class:`Checkpoints`, in every process."""
    return Checkpoints(workdir) if processes.count() == 1 else SharedCheckpoints(workdir)


def open_metrics(workdir: Path, step: int, copy: bytes | None) -> Any:
    """Returns a context like :class:`Metrics`; in all processes but the first one without files."""
    if processes.count() == 1:
        return Metrics(workdir, step, copy)
    metrics = Metrics(workdir, step, copy) if processes.is_first() else None
    rows = collectives.value_of_first(metrics and metrics.rows)
    return metrics or MetricsInMemory(rows)


class MetricsInMemory(contextlib.AbstractContextManager):
    """The rows of metrics.jsonl in a process that does not write them.

    Args:
      rows: those of earlier steps.
    """

    def __init__(self, rows: list[dict]):
        self.rows = rows

    def write(self, row: dict) -> None:
        """Appends a row."""
        self.rows.append(row)

    def sync(self) -> None:
        """Returns nothing: there is no file."""

    def __exit__(self, *_):
        pass


class SharedCheckpoints(contextlib.AbstractContextManager):
    """Checkpoints that the first process writes and reads, for all; see :class:`Checkpoints`.

    Args:
      workdir: folder of the run, on the machine of the first process.
    """

    def __init__(self, workdir: Path):
        self._own = Checkpoints(workdir) if processes.is_first() else None
        self._newest = collectives.value_of_first(self._own and self._own.latest())

    def latest(self) -> int | None:
        """Returns the step of the newest checkpoint at the time of opening, None for none."""
        return self._newest

    def rows(self) -> bytes | None:
        """Returns metrics.jsonl up to the step of :meth:`latest`, in the first process alone."""
        return self._own and self._own.rows()

    def save(self, state: Any, step: int, rows: tuple[Path, int] | None, reported: Any) -> None:
        """Saves in the background; see :meth:`Checkpoints.save`. The first process gets all."""
        state, reported = collectives.to_host((state, reported))
        if self._own:
            self._own.save(state, step, rows, reported)

    def restore_all(self, state: Any) -> tuple[Any, Any]:
        """Returns the newest checkpoint with the shardings of ``state``, and what it reports.

        See :meth:`Checkpoints.restore_all`.
        """
        found = reported = None
        if self._own:
            here = SingleDeviceSharding(jax.local_devices()[0])
            target = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), state
            )
            found, reported = self._own.restore_all(target)
        has_reported = collectives.value_of_first(reported is not None)
        found = collectives.arrays_of_first(state if found is None else found)
        placed = collectives.place_like(found, state)
        if not has_reported:
            return placed, None
        reported = state.variables if reported is None else reported
        reported = collectives.arrays_of_first(reported)
        return placed, collectives.place_like(reported, state.variables)

    def __exit__(self, *problem):
        if self._own:
            self._own.__exit__(*problem)
