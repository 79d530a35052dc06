"""A trace of a few training steps for TensorBoard or Perfetto."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from experiments.training import processes


class Profile:
    """Traces the second chunk of steps, because the first one compiles, in the first process.

    Args:
      steps: number of steps in that chunk; 0 for no trace.
      workdir: of the run; the trace is written to ``profile/`` there.
    """

    def __init__(self, steps: int, workdir: Path):
        self._steps, self._folder, self._warm = steps, workdir / "profile", False

    def count(self, due: int, most: int) -> int:
        """Returns the steps of the next chunk: ``due``, or if it is traced up to ``most``."""
        return min(self._steps, most) if self._next else due

    def run(self, chunk: Callable, *args) -> Any:
        """Returns the result of a chunk, which is traced if it is the second one."""
        if not self._next:
            self._warm = True
            return chunk(*args)
        self._steps = 0
        if not processes.is_first():
            return chunk(*args)
        with jax.profiler.trace(self._folder, create_perfetto_trace=True):
            result = jax.block_until_ready(chunk(*args))
        print(f"profile in {self._folder}", file=sys.stderr)
        return result

    @property
    def _next(self) -> bool:
        return self._warm and self._steps > 0
