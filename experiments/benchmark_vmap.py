"""Measure the time of a training step per run, for one run alone and for several runs together.

    python -m experiments.benchmark_vmap
    python -m experiments.benchmark_vmap --sizes="tiny,8;small,64" --output=results/speed/NAME

The steps are those of the training loop on the bundled digits, whose pixels do not affect the time;
evaluation and checkpoints are excluded. A gain below one is a loss. The decisions that follow from
these measurements are in :mod:`experiments.sweeps.grouping` and
:data:`experiments.training.vmapped_loop.ONE_BY_ONE`.
"""

import dataclasses
import sys

import jax
import numpy as np

from capsjax.models import PRESETS
from experiments import mnist
from experiments.config import UserError, setting
from experiments.config.flags import run
from experiments.plots.text_tables import markdown
from experiments.training import chunks, vmapped_loop
from experiments.training.first_step import before_first_step
from experiments.training.results import output_path, print_results, provenance, write_results
from experiments.training.setup import prepare
from kernels.bench import seconds

STEPS = mnist.PROGRAM.defaults.log_every  # in a call


def measure(preset: str, batch_size: int, runs: int, accelerator: str) -> dict:
    """Measures the milliseconds of a step per run, alone and together; medians over calls."""
    base = dataclasses.replace(
        mnist.PROGRAM.defaults,
        dataset="digits",
        preset=preset,
        batch_size=batch_size,
        accelerator=accelerator,
        num_devices=1,
    )
    setup = prepare(mnist.PROGRAM, base)
    took = {}
    for S in (1, runs):
        setup = before_first_step(setup, chunks.chunk_body, S)
        configs = [dataclasses.replace(setup.config, seed=seed) for seed in range(S)]
        numbers, state, source, order, keys, _ = vmapped_loop.inputs(setup, configs)
        if S == 1:
            chunk = chunks.chunk_body(setup, None, 1, lambda batch: batch)
            state, order, keys = jax.tree.map(lambda leaf: leaf[0], (state, order, keys))
            arguments = (state, jax.device_put(source), order, keys, STEPS, 0)
        else:
            chunk = vmapped_loop.make_body(setup)
            arguments = (numbers, state, jax.device_put(source), order, keys, STEPS)
        compiled = jax.jit(chunk).lower(*arguments).compile()
        took[S] = 1e3 * float(np.median(seconds(compiled, *arguments))) / STEPS / S
    return {
        "preset": preset,
        "batch_size": batch_size,
        "runs": runs,
        "alone_ms": round(took[1], 2),
        "together_ms": round(took[runs], 2),
        "gain": round(took[1] / took[runs], 2),
    }


def parse_sizes(text: str) -> list[tuple[str, int]]:
    """Returns the presets and batch sizes of ``--sizes``.

    Raises:
      UserError: the text holds anything else.
    """
    try:
        pairs = [part.split(",") for part in text.split(";")]
        found = [(preset.strip(), int(batch)) for preset, batch in pairs]
        if all(0 < batch < 10**6 and f"capsnet_{preset}" in PRESETS for preset, batch in found):
            return found
        raise ValueError("no such size")
    except ValueError as error:
        raise UserError(f"--sizes={text}: write it as 'tiny,8;small,64'") from error


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of this command."""

    sizes: str = setting("tiny,8;tiny,64;small,64", "presets and batch sizes")
    runs: int = setting(4, "number of runs trained together", low=2)
    accelerator: str = setting("cpu", "auto, cpu, gpu or tpu")
    output: str = setting("", "write OUTPUT.json and OUTPUT.md")


DEFAULTS = Flags()


def main(flags: Flags) -> None:
    """Measures, writes and prints.

    Raises:
      UserError: a flag is wrong, or the output can't be written.
    """
    if flags.output:
        output_path(flags.output)
    rows = []
    for preset, batch_size in parse_sizes(flags.sizes):
        rows.append(measure(preset, batch_size, flags.runs, flags.accelerator))
        print(rows[-1], file=sys.stderr)
    command = f"python -m experiments.benchmark_vmap --sizes='{flags.sizes}' --runs={flags.runs}"
    if flags.accelerator != DEFAULTS.accelerator:
        command += f" --accelerator={flags.accelerator}"
    seeds = list(range(flags.runs))
    result = provenance(command, seeds, jax.devices()[0]) | {"rows": rows}
    text = markdown(list(rows[0]), [[str(v) for v in row.values()] for row in rows])
    if flags.output:
        write_results(flags.output, result, text)
    print_results(result, text)


if __name__ == "__main__":
    run(main, DEFAULTS)
