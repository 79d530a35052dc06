"""Where the time of a step goes: a trace of a few steps for TensorBoard or Perfetto."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax


class Profile:
    """Traces one chunk of steps, the second: the first compiles.

    Args:
      steps: of that chunk; 0 for no trace. workdir: of the run; the trace is in ``profile/`` there.
    """

    def __init__(self, steps: int, workdir: Path):
        self._steps, self._folder, self._warm = steps, workdir / "profile", False

    def count(self, due: int, most: int) -> int:
        """Steps of the next chunk, where ``due`` are to be done and ``most`` can be."""
        return min(self._steps, most) if self._next else due

    def run(self, chunk: Callable, *args) -> Any:
        """The result of a chunk, traced if it is the one."""
        if not self._next:
            self._warm = True
            return chunk(*args)
        self._steps = 0
        with jax.profiler.trace(self._folder, create_perfetto_trace=True):
            result = jax.block_until_ready(chunk(*args))
        print(f"profile in {self._folder}", file=sys.stderr)
        return result

    @property
    def _next(self) -> bool:
        return self._warm and self._steps > 0
