"""Time from the start of a training command to its first finished step."""

import dataclasses
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from experiments.config import Config, UserError


def first_step_seconds(config: Config, repetitions: int) -> dict[str, list[float]]:
    """Measures the seconds from starting the MNIST command to its first finished step.

    Args:
      config: the network and the device.
      repetitions: number of measurements of each kind.

    Returns:
      All measurements by kind: ``cold``, with an empty cache for compiled programs and data, and
      ``warm``, with the cache that the cold start before it filled.

    Raises:
      UserError: the command ended before its first step.
    """
    seconds = {"cold": [], "warm": []}
    for _ in range(repetitions):
        with tempfile.TemporaryDirectory() as scratch:
            for name, values in seconds.items():
                values.append(_start(config, Path(scratch), Path(scratch) / name))
    return seconds


def command_of(config: Config, cache: Path, workdir: Path) -> list[str]:
    """Returns the training command of one step of the network and on the device of a benchmark."""
    flags = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(Config)
        if field.metadata.get("flag", True) and getattr(config, field.name) != field.default
    }
    flags |= {"dataset": "digits", "steps": 1, "cache_dir": cache, "workdir": workdir}
    words = [f"--{name.removesuffix('_')}={value}" for name, value in flags.items()]
    return [sys.executable, "-m", "experiments.mnist", *words]


def _start(config: Config, cache: Path, workdir: Path) -> float:
    command = command_of(config, cache, workdir)
    start = time.perf_counter()
    child = subprocess.Popen(
        command,
        cwd=Path(__file__).resolve().parents[2],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    rows = workdir / "metrics.jsonl"
    while not (rows.exists() and rows.stat().st_size) and child.poll() is None:
        time.sleep(0.01)
    took = time.perf_counter() - start
    child.kill()
    child.wait()
    if not (rows.exists() and rows.stat().st_size):
        raise UserError(f"{' '.join(command)} ended before its first step")
    return took
