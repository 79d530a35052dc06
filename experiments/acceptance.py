"""What a new accelerator must show, in one command: correct, fast, and trained.

    python -m experiments.acceptance --accelerator=gpu       meant to take 10 minutes
    python -m experiments.acceptance --accelerator=cpu --tiny        2 minutes, to try the program

Kernels against float64, routing alone, whole steps in each precision and with each implementation
of routing (and a PyTorch CapsNet where PyTorch is installed), and one training of MNIST by the
paper's recipe. Needs no network where MNIST has been used before (``--cache_dir``). Every part is
a process of its own; one that fails stops no other. Writes OUTPUT.json and OUTPUT.md, where every
target is judged by what was measured. The exit status is 1 where a part fails or a target is
missed.
"""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from absl import flags

from experiments.config import UserError
from experiments.training.workdir import write_json
from kernels import cli

PLATFORMS = {"cpu": "cpu", "gpu": "cuda,cpu", "tpu": "tpu,cpu"}  # of JAX; the first is used
ROOT = Path(__file__).resolve().parent.parent
MNIST = 60_000  # training images
# How float32 products are computed: the name of JAX_DEFAULT_MATMUL_PRECISION, and --dtype.
PRECISIONS = {
    "float32": ("highest", "float32"),
    "tf32": ("tensorfloat32", "float32"),
    "bfloat16": ("default", "bfloat16"),
}


@dataclasses.dataclass(frozen=True)
class Part:
    """A program that prints lines of JSON, or leaves the summary of a run."""

    name: str
    module: str
    arguments: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    summary: bool = False


class Target(NamedTuple):
    """What a part is asked for: ``value`` of all results, at most or at least ``bound``."""

    name: str
    value: Callable[[dict], float]
    bound: float
    least: bool = False


def parts(accelerator: str, tiny: bool, cache_dir: str, epochs: int) -> list[Part]:
    """What is run, in this order."""
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
            # PyTorch computes in float32, which its loss must equal ours in.
            peer = (precision, implementation) == ("float32", implementations[-1])
            peer = peer and accelerator != "tpu" and importlib.util.find_spec("torch")
            how = (f"--dtype={dtype}", f"--routing_implementation={implementation}")
            how += ("--nofirst_step", *(["--compare=torch"] if peer else []))
            environment = (("JAX_DEFAULT_MATMUL_PRECISION", name),)
            arguments = (*network, *how, *where)
            label = f"step, {precision}, {implementation}"
            found.append(Part(label, "experiments.benchmark", arguments, environment))
    found.append(Part("training", "experiments.mnist", (*training, *where), summary=True))
    return found


def images_per_second(results: dict, precision: str, whose: str = "capsjax") -> float:
    """The fastest training of a kind, over implementations of routing; zero where there is none."""
    rates = [
        row["images_per_second"]["median"]
        for name, result in results.items()
        if name.startswith(f"step, {precision},")
        for row in result[-1]["rows"]
        if row["function"] == "training" and row["network"].startswith(whose)
    ]
    return max(rates, default=0.0)


def epoch(precision: str) -> Callable[[dict], float]:
    """Seconds of an MNIST epoch."""
    return lambda results: MNIST / images_per_second(results, precision)


def against_torch(results: dict) -> float:
    """How many times faster than PyTorch, eager or compiled, whichever is faster."""
    return images_per_second(results, "float32") / images_per_second(results, "float32", "torch")


# Of one H200, from the issue this program answers; elsewhere they say how far one is.
TARGETS = (
    Target("MNIST epoch in bfloat16, s", epoch("bfloat16"), 1.0),
    Target("MNIST epoch in float32, s", epoch("float32"), 2.0),
    Target("MNIST epoch in TF32, s", epoch("tf32"), 2.0),
    Target("training step, times the speed of PyTorch", against_torch, 5.0, least=True),
    Target("test error, %", lambda results: results["training"][-1]["test_error"], 0.35),
    Target("training, s", lambda results: results["training"][-1]["training_seconds"], 60.0),
)


def check_device(accelerator: str) -> None:
    """Look for it in another process, because one that sees a GPU takes its memory.

    Raises:
      UserError: it is absent.
    """
    code = f"from experiments import runtime; runtime.devices({accelerator!r})"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    if found.returncode:
        raise UserError(found.stderr.strip().splitlines()[-1].partition("UserError: ")[2])


def run(part: Part, accelerator: str, folder: Path, seconds: float) -> dict:
    """Run a part; its results, a list, and what became of it."""
    arguments = [*part.arguments, *([f"--workdir={folder}"] if part.summary else [])]
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
    if status == 0 and part.summary:
        results = [json.loads((folder / "summary.json").read_text())]
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


def judge(done: list[dict]) -> list[dict]:
    """Every target with its value, or None where the part that gives it failed."""
    results = {one["name"]: one["results"] for one in done if one["results"]}
    found = []
    for target in TARGETS:
        try:
            value = target.value(results)
        except (KeyError, ZeroDivisionError):
            value = None
        met = value is not None and (
            value >= target.bound if target.least else value <= target.bound
        )
        row = {"target": target.name, "value": None if value is None else round(value, 3)}
        found.append(row | {"bound": target.bound, "least": target.least, "met": met})
    return found


def table(done: list[dict], judged: list[dict]) -> str:
    """Parts and targets as Markdown."""
    lines = ["| part | seconds | status |", "| --- | --- | --- |"]
    for one in done:
        status = "done" if one["status"] == 0 else f"failed ({one['status']}): {one['error']}"
        lines.append(f"| {one['name']} | {one['seconds']:.0f} | {status} |")
    lines += ["", "| target | asked | measured | |", "| --- | --- | --- | --- |"]
    for row in judged:
        value = "not measured" if row["value"] is None else f"{row['value']:g}"
        asked = f"{'≥' if row['least'] else '≤'} {row['bound']:g}"
        verdict = "met" if row["met"] else "missed" if row["value"] is not None else ""
        lines.append(f"| {row['target']} | {asked} | {value} | {verdict} |")
    return "\n".join(lines)


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    common = {"flag_values": flag_values}
    flags.DEFINE_enum("accelerator", "gpu", ("cpu", "gpu", "tpu"), "where to compute", **common)
    flags.DEFINE_boolean("tiny", False, "a network in miniature, to try the program", **common)
    flags.DEFINE_integer("epochs", 40, "of the training", 1, **common)
    flags.DEFINE_integer("limit", 240, "seconds of a part, at most", 1, **common)
    flags.DEFINE_string("cache_dir", "", "where MNIST and compiled programs are kept", **common)
    flags.DEFINE_string("output", "acceptance", "write OUTPUT.json and OUTPUT.md", **common)


def main() -> None:
    """Run all parts, judge, write."""
    F = flags.FLAGS
    output = Path(F.output)
    if not output.parent.is_dir():
        raise UserError(f"--output={F.output}: there is no folder {output.parent}")
    check_device(F.accelerator)
    done = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, part in enumerate(parts(F.accelerator, F.tiny, F.cache_dir, F.epochs)):
            print(f"{part.name} ...", file=sys.stderr)
            done.append(run(part, F.accelerator, Path(scratch) / str(number), F.limit))
    judged = judge(done)
    command = "python -m experiments.acceptance" + "".join(
        f" --{name}={F[name].value}"
        for name in ("accelerator", "tiny", "epochs")
        if F[name].present
    )
    about = {"command": command, "commit": cli.commit()}
    write_json(Path(f"{output}.json"), about | {"parts": done, "targets": judged})
    text = table(done, judged)
    Path(f"{output}.md").write_text(f"{text}\n\n`{command}`, commit {about['commit']}\n")
    print(text)
    if any(one["status"] != 0 for one in done) or not (F.tiny or all(r["met"] for r in judged)):
        sys.exit(1)


if __name__ == "__main__":
    define_flags()
    cli.run(main, UserError)
