"""Which runs are trained together, as one program with an axis more."""

import dataclasses
import functools
import subprocess
import sys

from experiments.config import Config, names_of
from experiments.sweeps.plan import PlannedRun, identity

MOST = 64  # runs at once, however large the memory


def family(run: PlannedRun, defaults: Config) -> str:
    """Returns a key that runs share if they differ only in seed and in ``numeric`` flags."""
    same = {name: getattr(defaults, name) for name in ("seed", *names_of(defaults, "numeric"))}
    return identity(dataclasses.replace(run.config, **same), defaults)


def divide(
    runs: list[PlannedRun], defaults: Config, vmap: str, alone: set[str], jobs: int = 1
) -> list[list[PlannedRun]]:
    """Runs in groups, each of which a process trains, all or as many as it has memory for.

    Args:
      runs: to be done. defaults: of the program.
      vmap: auto, off, or the most runs of a group. alone: keys of runs in groups of their own.
      jobs: processes at once, among which runs of one kind are divided.
    """
    families: dict[str, list[PlannedRun]] = {}
    for run in runs:
        single = run.key in alone or vmap == "off" or _needs_its_own(run.config)
        name = run.key if single else family(run, defaults)
        families.setdefault(name, []).append(run)
    groups = []
    for members in families.values():
        size = 1 if len(members) == 1 else _most(members[0].config, vmap)
        size = min(size, -(-len(members) // jobs))
        groups += [members[n : n + size] for n in range(0, len(members), size)]
    return groups


def _needs_its_own(config: Config) -> bool:
    return config.routing == "frozen" or config.diagnostics or config.profile > 0


def _most(config: Config, vmap: str) -> int:
    if vmap != "auto":
        return int(vmap)
    # `python -m experiments.benchmark_vmap`: on a CPU little more than the start is saved.
    return 1 if platform(config.accelerator) == "cpu" else MOST


@functools.cache
def platform(accelerator: str) -> str:
    """cpu, gpu or tpu; asked of a process of its own, because this one must not take the device."""
    if accelerator != "auto":
        return accelerator
    code = "import jax; print(jax.default_backend())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return (done.stdout.split() or ["cpu"])[-1]
