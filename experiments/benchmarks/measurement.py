"""The measurements of a benchmark: one row for each network, function and size."""

import dataclasses
import itertools
import os
import sys

import numpy as np

from capsjax.models import CapsNetConfig
from capsjax.models import Config as ModelConfig
from experiments import TUNABLES
from experiments.benchmarks import throughput
from experiments.benchmarks.throughput import TRAINING, flops_per_image
from experiments.benchmarks.variants import make_variants
from experiments.config import Config, UserError
from experiments.plots.text_tables import markdown
from experiments.tasks.base import Program
from experiments.training.chunks import chunk_body
from experiments.training.first_step import before_first_step
from experiments.training.results import peak_memory_mb, versions
from experiments.training.setup import prepare

HEADINGS = ["network", "function", "pixels", "batch", "images/s", "range", "share of limit", "MB"]


def measure(
    program: Program,
    config: Config,
    axes: dict[str, list[str]],
    sides: list[int],
    batch_sizes: list[int],
    repetitions: int,
    torch: bool,
) -> dict:
    """Measures networks at several sizes of images and batches.

    A network that cannot be computed on this machine is skipped, with a line on standard error.

    Args:
      program: the benchmark, for :func:`experiments.training.setup.prepare`.
      config: what all networks have in common.
      axes: see :func:`experiments.benchmarks.variants.make_variants`.
      sides: of the square images, in pixels.
      batch_sizes: of all networks.
      repetitions: of every measurement.
      torch: also measure the PyTorch network.

    Raises:
      UserError: no network can be computed.
    """
    rows, products, skipped = [], [], []
    variants = make_variants(config, axes)
    for (name, variant), side, size in itertools.product(variants, sides, batch_sizes):
        what = f"{name}, {side}x{side} pixels, batches of {size}"
        print(f"{what} ...", file=sys.stderr)
        sized = dataclasses.replace(variant, batch_size=size)
        try:
            setup = prepare(program, sized, throughput.random_images(sized, side))
        except UserError as error:
            skipped.append(f"{what}: {error}")
            print(f"skipped: {error}", file=sys.stderr)
            continue
        setup = before_first_step(setup, chunk_body)
        found = throughput.capsjax_implementations(setup)
        if torch:
            found |= throughput.torch_implementations(setup)
        rates, product = throughput.measure_in_turn(found, repetitions)
        products += product
        flops = countable_flops(setup.model_config)
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
        raise UserError(skipped[0])
    device = setup.devices[0]
    return {
        "program": config.program,
        "rows": rows,
        "left_out": skipped,
        "matmul_gflops": summarize(products),
        "peak_memory_mb": peak_memory_mb(device),
        "accelerator": device.platform,
        "device_kind": device.device_kind,
        "num_devices": len(setup.devices),
        "cpu_count": os.cpu_count(),
        "glibc_tunables": os.environ.get(TUNABLES),
        "versions": versions()
        | ({"torch": throughput.torch_capsnet().torch.__version__} if torch else {}),
    }


def countable_flops(config: ModelConfig) -> int | None:
    """Returns the operations of a training image, or None for a network they are unknown of."""
    if not isinstance(config, CapsNetConfig):
        return None
    plain = not (config.capsule_layers or config.more_convs or config.primary_depthwise)
    return flops_per_image(config) if plain and config.conv_stride == 1 else None


def to_markdown(result: dict) -> str:
    """Returns the table of a result, and its times to the first step where they were measured."""
    text = table(result["rows"])
    if "first_step_seconds" in result:
        times = (
            f"{name} {took['median']:.1f} s ({took['min']:.1f} to {took['max']:.1f})"
            for name, took in result["first_step_seconds"].items()
        )
        text += f"\n\nFrom the command to the first finished step: {', '.join(times)}."
    return text


def table(rows: list[dict]) -> str:
    """Returns the rows of a result as a table in Markdown."""

    def cells(row):
        rate = row["images_per_second"]
        yield from (row["network"], row["function"], str(row["pixels"]), str(row["batch_size"]))
        yield from (f"{rate['median']:.0f}", f"{rate['min']:.0f} to {rate['max']:.0f}")
        share, memory = row["share_of_limit"], row["megabytes"]
        yield from (f"{share:.2f}" if share else "", f"{memory:.0f}" if memory else "")

    return markdown(HEADINGS, [list(cells(row)) for row in rows])


def summarize(values: list[float]) -> dict[str, float]:
    """Returns the median and the range of values."""
    return {
        "median": round(float(np.median(values)), 2),
        "min": round(min(values), 2),
        "max": round(max(values), 2),
    }
