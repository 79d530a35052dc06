"""Which runs of a sweep are trained together, as one program with an axis for the runs."""

import dataclasses
import functools
import subprocess
import sys

from experiments.config import Config, names_of
from experiments.sweeps.plan import PlannedRun, identity

MAX_RUNS = 64  # trained together, whatever the memory


def group_key(run: PlannedRun, defaults: Config) -> str:
    """Returns a key that runs share if they differ only in seed and in ``numeric`` flags."""
    same = {name: getattr(defaults, name) for name in ("seed", *names_of(defaults, "numeric"))}
    return identity(dataclasses.replace(run.config, **same), defaults)


def divide(
    runs: list[PlannedRun], defaults: Config, vmap: str, alone: set[str], jobs: int = 1
) -> list[list[PlannedRun]]:
    """Divides runs into groups, each of which is trained by one process.

    A process trains all runs of its group, or as many as its memory holds.

    Args:
      runs: to be trained.
      defaults: of the program.
      vmap: auto, off, or the maximum size of a group.
      alone: keys of runs that have groups of their own.
      jobs: number of processes at once, among which similar runs are divided.
    """
    by_key: dict[str, list[PlannedRun]] = {}
    for run in runs:
        single = run.key in alone or vmap == "off" or _must_be_alone(run.config)
        name = run.key if single else group_key(run, defaults)
        by_key.setdefault(name, []).append(run)
    groups = []
    for members in by_key.values():
        size = 1 if len(members) == 1 else _max_size(members[0].config, vmap)
        size = min(size, -(-len(members) // jobs))
        groups += [members[n : n + size] for n in range(0, len(members), size)]
    return groups


def _must_be_alone(config: Config) -> bool:
    measured = config.diagnostics or config.profile > 0
    ends = config.max_minutes > 0 or config.early_stopping > 0
    return config.routing == "frozen" or measured or ends


def _max_size(config: Config, vmap: str) -> int:
    if vmap != "auto":
        return int(vmap)
    # By `python -m experiments.benchmark_vmap`, on CPU little more than the start is saved.
    return 1 if platform(config.accelerator) == "cpu" else MAX_RUNS


@functools.cache
def platform(accelerator: str) -> str:
    """Returns cpu, gpu or tpu, from another process because this one must not use the device."""
    if accelerator != "auto":
        return accelerator
    code = "import jax; print(jax.default_backend())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return (done.stdout.split() or ["cpu"])[-1]
