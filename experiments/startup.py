"""How long a program takes to its first finished step."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from experiments.config import Config
from experiments.errors import UserError


def first_step_seconds(config: Config) -> dict[str, float]:
    """Seconds from starting the MNIST program to its first finished step, cold and warm."""
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as scratch:
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
            "cache_dir": scratch,
            "steps": 1,
        }
        command = [sys.executable, "-m", "experiments.mnist"]
        command += [f"--{name}={value}" for name, value in flags.items()]
        seconds = {}
        for name in ("cold", "warm"):
            workdir = Path(scratch) / name
            start = time.perf_counter()
            child = subprocess.Popen(
                [*command, f"--workdir={workdir}"],
                cwd=root,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            rows = workdir / "metrics.jsonl"
            while not (rows.exists() and rows.stat().st_size) and child.poll() is None:
                time.sleep(0.01)
            seconds[name] = round(time.perf_counter() - start, 1)
            child.kill()
            child.wait()
            if not (rows.exists() and rows.stat().st_size):
                raise UserError(f"{' '.join(command)} ended before its first step")
    return seconds
