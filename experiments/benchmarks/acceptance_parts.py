"""The parts of an acceptance run: measuring commands, each in a process of its own."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from experiments.config import UserError
from experiments.files import read_json

PLATFORMS = {"cpu": "cpu", "gpu": "cuda,cpu", "tpu": "tpu,cpu"}  # of JAX; the first is used
ROOT = Path(__file__).resolve().parents[2]
# How float32 products are computed: the name of JAX_DEFAULT_MATMUL_PRECISION, and --dtype.
PRECISIONS = {
    "float32": ("highest", "float32"),
    "tf32": ("tensorfloat32", "float32"),
    "bfloat16": ("default", "bfloat16"),
}


@dataclasses.dataclass(frozen=True)
class Part:
    """A command that prints lines of JSON, or trains and writes a summary."""

    name: str
    module: str
    arguments: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    trains: bool = False


def list_parts(accelerator: str, tiny: bool, cache_dir: str, epochs: int) -> list[Part]:
    """Returns the parts in the order in which they are run.

    Args:
      accelerator: cpu, gpu or tpu.
      tiny: use the smallest networks, to try the command itself.
      cache_dir: of data sets and compiled programs; empty for the default.
      epochs: of the training run.
    """
    where = (f"--accelerator={accelerator}", *([f"--cache_dir={cache_dir}"] if cache_dir else []))
    if tiny:
        kernels = ("--problem=ragged", "--implementation=naive,stream")
        network = ("--preset=tiny", "--batch_size=8", "--num_devices=1", "--repetitions=2")
        training = ("--dataset=digits", "--preset=tiny", "--steps=5", "--num_devices=1")
        implementations, precisions = ("naive", "stream"), ("float32",)
    else:
        kernels = ("--problem=mnist_b128,mnist_b1024,cifar_b128", "--implementation=all")
        network = ()
        training = ("--dataset=mnist", f"--epochs={epochs}", "--log_every=100")
        implementations, precisions = ("naive", "stream", "pallas"), tuple(PRECISIONS)
    found = [Part("kernels", "kernels.bench", (*kernels, "--precision=highest"))]
    for precision in precisions:
        name, dtype = PRECISIONS[precision]
        for implementation in implementations:
            # PyTorch computes in float32, and both must compute the same loss.
            torch = (precision, implementation) == ("float32", implementations[-1])
            torch = torch and accelerator != "tpu" and importlib.util.find_spec("torch")
            how = (f"--dtype={dtype}", f"--routing_implementation={implementation}")
            how += ("--nofirst_step", *(["--compare=torch"] if torch else []))
            environment = (("JAX_DEFAULT_MATMUL_PRECISION", name),)
            arguments = (*network, *how, *where)
            label = f"step, {precision}, {implementation}"
            found.append(Part(label, "experiments.benchmark", arguments, environment))
    found.append(Part("training", "experiments.mnist", (*training, *where), trains=True))
    return found


def check_device(accelerator: str) -> None:
    """Checks in another process, because one that uses a GPU reserves its memory.

    Raises:
      UserError: JAX sees no such device.
    """
    code = f"from experiments.training import devices; devices.find_devices({accelerator!r})"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    if found.returncode:
        raise UserError(found.stderr.strip().splitlines()[-1].partition("UserError: ")[2])


def run_part(part: Part, accelerator: str, folder: Path, seconds: float) -> dict:
    """Runs a part and returns its results, exit status and duration.

    Args:
      part: to run.
      accelerator: cpu, gpu or tpu.
      folder: for the training run.
      seconds: after which the part is stopped.
    """
    arguments = [*part.arguments, *([f"--workdir={folder}"] if part.trains else [])]
    command = [sys.executable, "-m", part.module, *arguments]
    start = time.monotonic()
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": PLATFORMS[accelerator]} | dict(part.environment),
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        status, out, err = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired:
        status, out, err = "too slow", "", f"more than {seconds:.0f} s"
    results = []
    if status == 0 and part.trains:
        results = [read_json(folder / "summary.json")]
    elif status == 0:
        results = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    settings = "".join(f"{key}={value} " for key, value in part.environment)
    return {
        "name": part.name,
        "command": f"{settings}python -m {part.module} {' '.join(part.arguments)}",
        "seconds": round(time.monotonic() - start, 1),
        "status": status,
        "error": None if status == 0 else (err.strip().splitlines() or [""])[-1],
        "results": results,
    }
