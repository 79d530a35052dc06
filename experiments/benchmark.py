"""Speed of the network, training and inference, as one JSON, a table and a picture.

    python -m experiments.benchmark                                     about 3 minutes on 2 cores
    python -m experiments.benchmark --batch_sizes=1,8,32,128 --output=results/benchmark
    python -m experiments.benchmark --pixels=24,28,32,36,40 --batch_sizes=32,128
    python -m experiments.benchmark --routings=all --preset=small --repetitions=3
    python -m experiments.benchmark --implementations=naive,stream --dtypes=float32,bfloat16
    python -m experiments.benchmark --compare=torch                     where PyTorch is installed

images_per_second of training counts augmentation, forward and backward pass and Adam, with the
data on the device, in chunks of steps as in training; of inference, the class scores, in chunks
of batches as in evaluation; "one call" is the class scores of one batch that is asked for alone,
where memory is fetched anew each time. megabytes are those of arguments, results and temporaries
of the compiled function. All is measured in turn, again and again, so that a noisy machine is as
unfair to one as to another; a figure is the median of the repetitions, with the range.
matmul_gflops is the rate of a large float32 matrix product, measured in the same turns;
share_of_limit says how a figure compares with direct convolutions that run at that rate (it may
exceed one, because interpolation needs fewer operations). first_step_seconds is the time from
starting ``python -m experiments.mnist`` to its first finished step, without and with compiled
programs in the cache, of ``--repetitions`` such starts.

``--compare=torch`` measures our PyTorch CapsNet too (:mod:`experiments.benchmarks.torch_capsnet`), eager and
compiled, from the same parameters; its loss must first equal ours. It trains on one batch again
and again, without augmentation. PyTorch and JAX use all cores, in turn.
"""

import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags

from capsjax.models import CapsNetConfig
from capsjax.routing import ROUTINGS
from experiments import plots
from experiments.benchmarks import startup, throughput
from experiments.benchmarks.throughput import TRAINING, flops_per_image
from experiments.config import Config, UserError
from experiments.config import command as config_command
from experiments.config import flags as flags_module
from experiments.config.flags import from_flags, parse_flags
from experiments.tasks.base import Program
from experiments.tasks.classification import CLASSIFICATION
from experiments.training.results import peak_memory_mb, versions
from experiments.training.setup import prepare
from experiments.training.workdir import write_json
from kernels import cli

DEFAULTS = Config(program="benchmark", dataset="random", batch_size=128)
PROGRAM = Program(DEFAULTS, CLASSIFICATION)
COLUMNS = ("network", "function", "pixels", "batch", "images/s", "range", "share of limit", "MB")


class Axis(NamedTuple):
    """A flag that takes several values of another."""

    of: str  # the other flag
    all: tuple[str, ...]  # what "all" stands for
    help: str


AXES = {
    "routings": Axis("routing", tuple(ROUTINGS), "algorithms"),
    "implementations": Axis(
        "routing_implementation", ("naive", "stream", "pallas"), "ways to compute them"
    ),
    "dtypes": Axis("dtype", ("float32", "bfloat16"), "computation types"),
}


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Flags of the benchmark, and all of the programs'."""
    flags_module.define_flags(DEFAULTS, flag_values)
    common = {"flag_values": flag_values}
    flags.DEFINE_list("batch_sizes", None, "several, in place of --batch_size", **common)
    flags.DEFINE_list("pixels", ["28"], "sides of the square images", **common)
    for name, axis in AXES.items():
        flags.DEFINE_list(name, None, f"{axis.help}: some, or all", **common)
    flags.DEFINE_integer("repetitions", 7, "of every measurement", 1, **common)
    flags.DEFINE_boolean("first_step", True, "measure how long a program needs to it", **common)
    flags.DEFINE_enum("compare", "none", ("none", "torch"), "what to measure beside", **common)
    flags.DEFINE_string("output", None, "write OUTPUT.json, OUTPUT.md and OUTPUT.png", **common)


def main() -> None:
    """Measure and print."""
    F = flags.FLAGS
    config = from_flags(DEFAULTS, F)
    if config.model != "capsnet" or config.dataset != "random":
        raise UserError("experiments.benchmark measures --model=capsnet on random images")
    sizes = numbers("batch_sizes", F.batch_sizes or [str(config.batch_size)])
    sides = numbers("pixels", F.pixels)
    axes = {name: values(name, F[name].value) for name in AXES if F[name].value}
    own = ("batch_sizes", "pixels", *AXES, "repetitions", "compare")
    given = [f"--{name}={as_text(F[name].value)}" for name in own if F[name].present]
    command = " ".join([config_command(config, DEFAULTS), *given])
    first = {}
    if F.first_step:  # before this process holds memory and threads that slow others down
        last = dataclasses.replace(config, batch_size=sizes[-1])
        took = startup.first_step_seconds(last, F.repetitions)
        first["first_step_seconds"] = {name: summarize(values) for name, values in took.items()}
    result = measure(config, axes, sides, sizes, F.repetitions, F.compare == "torch")
    result |= {"command": command} | first
    text = described(result)
    if F.output:
        write_json(Path(f"{F.output}.json"), result)
        Path(f"{F.output}.md").write_text(f"{text}\n\n`{command}`, commit {result['commit']}\n")
        plots.plot_throughput(f"{F.output}.png", result["rows"], result["device_kind"])
    print(text, file=sys.stderr)
    print(json.dumps(result))


def as_text(value: object) -> str:
    """Of a flag, as it is written in a command."""
    return ",".join(value) if isinstance(value, list) else str(value)


def numbers(name: str, words: list[str]) -> list[int]:
    """Of a flag.

    Raises:
      UserError: one is no positive integer.
    """
    if not words or not all(word.strip().isdigit() and int(word) for word in words):
        raise UserError(f"--{name}={','.join(words)}: numbers such as 1,32,128 are needed")
    return [int(word) for word in words]


def values(name: str, words: list[str]) -> list[str]:
    """Of an axis.

    Raises:
      UserError: one that does not exist.
    """
    axis = AXES[name]
    if words == ["all"]:
        return list(axis.all)
    for word in words:
        try:
            parse_flags(DEFAULTS, [f"--{axis.of}={word}"])
        except flags.Error as error:
            raise UserError(f"--{name}: {error}") from error
    return words


def variants(config: Config, axes: dict[str, list[str]]) -> Iterator[tuple[str, Config]]:
    """A name, of what distinguishes it, and the configuration of every network."""
    for chosen in itertools.product(*axes.values()):
        changes = dict(zip((AXES[name].of for name in axes), chosen))
        yield ", ".join(chosen) or "capsjax", dataclasses.replace(config, **changes)


def measure(
    config: Config,
    axes: dict[str, list[str]],
    sides: list[int],
    sizes: list[int],
    repetitions: int,
    torch: bool,
) -> dict:
    """Everything about networks, at several sizes of images and batches.

    What can't be computed on this machine is left out, with a line on standard error.

    Raises:
      UserError: nothing is left.
    """
    rows, products, left_out = [], [], []
    for (name, variant), side, size in itertools.product(variants(config, axes), sides, sizes):
        what = f"{name}, {side}x{side} pixels, batches of {size}"
        print(f"{what} ...", file=sys.stderr)
        sized = dataclasses.replace(variant, batch_size=size)
        try:
            setup = prepare(PROGRAM, sized, throughput.random_images(sized, side))
        except UserError as error:
            left_out.append(f"{what}: {error}")
            print(f"left out: {error}", file=sys.stderr)
            continue
        found = throughput.ours(setup) | (throughput.theirs(setup) if torch else {})
        rates, product = throughput.in_turn(found, repetitions)
        products += product
        flops = countable(setup.model_config)
        for (network, function), rate in rates.items():
            row = {"network": name if network == "capsjax" else network, "function": function}
            row |= {"pixels": side, "batch_size": size, "images_per_second": summarize(rate)}
            needed = flops and flops / (1 if function == TRAINING else 3)
            limit = needed and np.median(product) * 1e9 / needed
            row["share_of_limit"] = limit and round(float(np.median(rate) / limit), 3)
            memory = found[network, function].bytes
            row["megabytes"] = memory and round(memory / 1e6, 1)
            rows.append(row | {"gflop_per_image": flops and round(flops / 1e9, 3)})
    if not rows:
        raise UserError(left_out[0])
    device = setup.devices[0]
    return {
        "program": config.program,
        "rows": rows,
        "left_out": left_out,
        "matmul_gflops": summarize(products),
        "peak_memory_mb": peak_memory_mb(device),
        "accelerator": device.platform,
        "device_kind": device.device_kind,
        "num_devices": len(setup.devices),
        "cpu_count": os.cpu_count(),
        "versions": versions()
        | ({"torch": throughput.torch_capsnet().torch.__version__} if torch else {}),
        "commit": cli.commit(),
    }


def countable(config: CapsNetConfig) -> int | None:
    """Operations of a training image, of networks of which we can say it."""
    plain = not (config.capsule_layers or config.more_convs or config.primary_depthwise)
    return flops_per_image(config) if plain and config.conv_stride == 1 else None


def described(result: dict) -> str:
    """A result as Markdown."""
    text = table(result["rows"])
    if "first_step_seconds" in result:
        said = (
            f"{name} {took['median']:.1f} s ({took['min']:.1f} to {took['max']:.1f})"
            for name, took in result["first_step_seconds"].items()
        )
        text += f"\n\nFrom the command to the first finished step: {', '.join(said)}."
    return text


def table(rows: list[dict]) -> str:
    """Rows of a result as Markdown."""

    def cells(row):
        rate = row["images_per_second"]
        yield from (row["network"], row["function"], row["pixels"], row["batch_size"])
        yield from (f"{rate['median']:.0f}", f"{rate['min']:.0f} to {rate['max']:.0f}")
        share, memory = row["share_of_limit"], row["megabytes"]
        yield from (f"{share:.2f}" if share else "", f"{memory:.0f}" if memory else "")

    lines = [COLUMNS, ["---"] * len(COLUMNS), *(map(str, cells(row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def summarize(values: list[float]) -> dict[str, float]:
    """Median and range."""
    return {
        "median": round(float(np.median(values)), 2),
        "min": round(min(values), 2),
        "max": round(max(values), 2),
    }


if __name__ == "__main__":
    define_flags()
    cli.run(main, UserError)
