"""What training runs together gains on this machine: time of a step a run, alone and together.

    python -m experiments.benchmark_vmap
    python -m experiments.benchmark_vmap --output=results/together --sizes="tiny,8;tiny,64;small,64"

Of steps of the shared loop on the bundled digits, whose pixels do not matter; without evaluation
and checkpoints. A gain below one is a loss; :mod:`experiments.sweeps.grouping` and
:data:`experiments.training.vmapped_loop.ONE_BY_ONE` hold what followed from it.
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import numpy as np
from absl import flags

from experiments import mnist
from experiments.config import UserError
from experiments.plots.text_tables import markdown
from experiments.training import loop, vmapped_loop
from experiments.training.results import versions
from experiments.training.setup import prepare
from experiments.training.workdir import write_json
from kernels import cli
from kernels.bench import seconds

COUNT = mnist.PROGRAM.defaults.log_every  # steps in a call


def measure(preset: str, batch_size: int, runs: int, accelerator: str) -> dict:
    """Milliseconds of a step of a run, alone and with others, medians over calls."""
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
        configs = [dataclasses.replace(setup.config, seed=seed) for seed in range(S)]
        numbers, state, source, order, keys, _ = vmapped_loop.inputs(setup, configs)
        if S == 1:
            chunk = loop.chunk_body(setup, None, 1, lambda batch: batch)
            state, order, keys = jax.tree.map(lambda leaf: leaf[0], (state, order, keys))
            arguments = (state, jax.device_put(source), order, keys, COUNT, 0)
        else:
            chunk = vmapped_loop.make_body(setup)
            arguments = (numbers, state, jax.device_put(source), order, keys, COUNT)
        run = jax.jit(chunk).lower(*arguments).compile()
        took[S] = 1e3 * float(np.median(seconds(run, *arguments))) / COUNT / S
    return {
        "preset": preset,
        "batch_size": batch_size,
        "runs": runs,
        "alone_ms": round(took[1], 2),
        "together_ms": round(took[runs], 2),
        "gain": round(took[1] / took[runs], 2),
    }


def parse_sizes(text: str) -> list[tuple[str, int]]:
    """Presets and batch sizes.

    Raises:
      UserError: anything else.
    """
    try:
        pairs = [part.split(",") for part in text.split(";")]
        return [(preset.strip(), int(batch)) for preset, batch in pairs]
    except ValueError as error:
        raise UserError(f"--sizes={text}: write it as 'tiny,8;small,64'") from error


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    common = {"flag_values": flag_values}
    flags.DEFINE_string("sizes", "tiny,8;tiny,64;small,64", "presets and batch sizes", **common)
    flags.DEFINE_integer("runs", 4, "runs together", 2, **common)
    flags.DEFINE_string("accelerator", "cpu", "auto, cpu, gpu or tpu", **common)
    flags.DEFINE_string("output", None, "write OUTPUT.json and OUTPUT.md", **common)


def main() -> None:
    """Measure and print."""
    F = flags.FLAGS
    rows = []
    for preset, batch_size in parse_sizes(F.sizes):
        rows.append(measure(preset, batch_size, F.runs, F.accelerator))
        print(rows[-1], file=sys.stderr)
    command = f"python -m experiments.benchmark_vmap --sizes='{F.sizes}' --runs={F.runs}"
    text = markdown(list(rows[0]), [[str(v) for v in row.values()] for row in rows])
    if F.output:
        about = {"command": command, "device_kind": jax.devices()[0].device_kind}
        about |= {"versions": versions(), "commit": cli.commit(), "rows": rows}
        write_json(Path(f"{F.output}.json"), about)
        foot = f"\n\n`{command}`, commit {about['commit']}\n"
        Path(f"{F.output}.md").write_text(text + foot)
    print(text, file=sys.stderr)
    print(json.dumps(rows))


if __name__ == "__main__":
    define_flags()
    cli.run(main, UserError)
