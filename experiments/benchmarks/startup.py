"""Time from the start of a training command to its first finished step."""

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


def _start(config: Config, cache: Path, workdir: Path) -> float:
    flags = {
        "dataset": "digits",
        "batch_size": config.batch_size,
        "preset": config.preset,
        "recipe": config.recipe,
        "dtype": config.dtype,
        "routing_implementation": config.routing_implementation,
        "accelerator": config.accelerator,
        "parallel": config.parallel,
        "num_devices": config.num_devices,
        "cache_dir": cache,
        "workdir": workdir,
        "steps": 1,
    }
    command = [sys.executable, "-m", "experiments.mnist"]
    command += [f"--{name}={value}" for name, value in flags.items()]
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
