"""The origin of a result (versions, commit, device, memory), and the files of a measurement."""

import json
import os
import platform
import sys
from pathlib import Path

import flax
import jax
import numpy as np
import optax
import psutil

from experiments.config import UserError
from experiments.files import local_path, write_json, write_text
from kernels.cli import commit

try:
    import resource
except ImportError:  # Windows
    resource = None


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that numbers depend on."""
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "numpy": np.__version__,
    }


def peak_memory_mb(device: jax.Device) -> int:
    """Returns the peak memory so far in MiB, of the accelerator or on CPU of the process."""
    if stats := device.memory_stats():
        return round(stats["peak_bytes_in_use"] / 2**20)
    if resource is None:
        memory = psutil.Process().memory_info()
        return round(getattr(memory, "peak_wset", memory.rss) / 2**20)
    unit = 1 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20)


def provenance(command: str, seed: int | list[int], device: jax.Device | None = None) -> dict:
    """Returns what every result says about its origin.

    Args:
      command: that repeats the measurement.
      seed: of its random numbers; several where it has runs with a seed each.
      device: on which it was made; None where other processes measured.
    """
    where = {} if device is None else {"device_kind": device.device_kind, "versions": versions()}
    return {"command": command, "commit": commit(), "seed": seed} | where


def output_path(output: str | Path) -> Path:
    """Returns the value of ``--output`` as a path without suffix, whose folder can be written.

    Raises:
      UserError: the folder is missing and can't be made.
    """
    path = local_path(str(output), "output").absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output={output} can't be written: {error.strerror}") from error
    if path.is_dir() or not path.name or not os.access(path.parent, os.W_OK):
        raise UserError(f"--output={output} is a folder, or can't be written; give a name in it")
    return path


def write_results(output: str | Path, result: dict, text: str) -> None:
    """Writes OUTPUT.json, and OUTPUT.md with the command and the commit below the text.

    Args:
      output: path without suffix.
      result: everything measured, with the fields of :func:`provenance`.
      text: the same for readers, in Markdown.

    Raises:
      UserError: the files can't be written.
    """
    path = output_path(output)
    foot = f"`{result['command']}`, commit {result['commit']}"
    try:
        write_json(path.with_name(f"{path.name}.json"), result)
        write_text(path.with_name(f"{path.name}.md"), f"{text}\n\n{foot}\n")
    except OSError as error:
        raise UserError(f"--output={output} can't be written: {error.strerror}") from error


def print_results(result: dict, text: str) -> None:
    """Prints the text for readers on standard error and one line of JSON on standard output."""
    print(text, file=sys.stderr)
    print(json.dumps(result))
