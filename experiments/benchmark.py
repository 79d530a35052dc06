"""Measure the speed and the memory of networks, in training and inference.

    python -m experiments.benchmark                                     about 3 minutes on 2 cores
    python -m experiments.benchmark --batch_sizes=1,8,32,128 --output=results/speed/benchmark
    python -m experiments.benchmark --pixels=24,28,32,36,40 --batch_sizes=32,128
    python -m experiments.benchmark --routings=all --preset=small --repetitions=3
    python -m experiments.benchmark --implementations=naive,stream --dtypes=float32,bfloat16
    python -m experiments.benchmark --compare=torch                     where PyTorch is installed
    python -m experiments.benchmark --against=HEAD~1                    is it faster than it was?

Training counts augmentation, forward and backward pass and Adam, in chunks of steps with the data
on the device, as in a training run. Inference counts the class scores, in chunks of batches as in
evaluation. "one call" counts the class scores of a single batch, whose memory is allocated anew in
every call. All functions are measured alternately, so that other load on the machine affects them
alike. The fields of the result are:

- images_per_second: median and range over the repetitions.
- megabytes: memory of arguments, results and temporaries of the compiled function.
- matmul_gflops: rate of a large float32 matrix product, measured in the same turns.
- share_of_limit: images_per_second relative to direct convolutions at that rate. It can exceed one,
  because interpolation needs fewer operations.
- first_step_seconds: time from starting ``python -m experiments.mnist`` to its first finished step,
  with an empty cache and with the compiled programs in it, over ``--repetitions`` starts.

``--compare=torch`` also measures this network in PyTorch, eager and compiled, from the same
parameters (:mod:`experiments.benchmarks.torch_capsnet`); its loss must first equal that of capsjax.
It trains on one batch repeatedly, without augmentation. PyTorch and JAX use all cores, alternately.

``--against=`` names a commit, or the folder of another checkout. Both are measured alternately, in
``--repetitions`` rounds of processes of their own, and the result is the ratio of their speeds with
an interval (:mod:`experiments.benchmarks.against`).
"""

import dataclasses

from experiments import plots
from experiments.benchmarks import against, measurement, startup
from experiments.benchmarks.variants import AXES, parse_numbers, parse_values
from experiments.config import Config, UserError, command, setting
from experiments.config.flags import run
from experiments.files import check_memory
from experiments.tasks.base import Program
from experiments.tasks.classification import CLASSIFICATION
from experiments.training.results import output_path, print_results, provenance, write_results


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig(Config):
    """Flags of this command, in addition to those of the training commands."""

    batch_sizes: str = setting("", "several, separated by commas, instead of --batch_size")
    pixels: str = setting("28", "sides of the square images, separated by commas")
    routings: str = setting("", "algorithms: some, separated by commas, or all")
    implementations: str = setting("", "ways to compute routing: some, or all")
    dtypes: str = setting("", "computation types: some, or all")
    repetitions: int = setting(7, "number of repetitions of every measurement", low=1)
    first_step: bool = setting(True, "measure the time from the command to its first step")
    compare: str = setting("none", "baseline to measure as well", choices=("none", "torch"))
    against: str = setting("", "commit or folder of a checkout to compare with", roles="path")
    output: str = setting("", "write OUTPUT.json, OUTPUT.md and OUTPUT.png", roles="path")


DEFAULTS = BenchmarkConfig(program="benchmark", dataset="random", batch_size=128)
PROGRAM = Program(DEFAULTS, CLASSIFICATION)


def main(config: BenchmarkConfig) -> None:
    """Measures, writes and prints.

    Raises:
      UserError: a flag is wrong, or no network can be computed.
    """
    if config.model != "capsnet" or config.dataset != "random":
        raise UserError("experiments.benchmark measures --model=capsnet on random images")
    batch_sizes = parse_numbers("batch_sizes", config.batch_sizes or str(config.batch_size))
    sides = parse_numbers("pixels", config.pixels)
    axes = {name: parse_values(name, text) for name in AXES if (text := getattr(config, name))}
    for side in sides:
        need = 4 * max(batch_sizes) * side**2 * 2
        what = f"a batch of {max(batch_sizes):,} images of {side}x{side} pixels"
        check_memory(need, what, "smaller --batch_sizes or --pixels need less")
    if config.output:
        output_path(config.output)
    if config.against:
        compare(config)
        return
    first_step = {}
    if config.first_step:  # before this process holds memory and threads that slow others down
        last = dataclasses.replace(config, batch_size=batch_sizes[-1])
        seconds = startup.first_step_seconds(last, config.repetitions)
        summaries = {name: measurement.summarize(values) for name, values in seconds.items()}
        first_step["first_step_seconds"] = summaries
    torch = config.compare == "torch"
    result = measurement.measure(
        PROGRAM, config, axes, sides, batch_sizes, config.repetitions, torch
    )
    # Whether the first step is measured has no part in the other numbers.
    reported = dataclasses.replace(config, first_step=DEFAULTS.first_step)
    result |= provenance(command(reported, DEFAULTS), config.seed) | first_step
    text = measurement.to_markdown(result)
    if config.output:
        write_results(config.output, result, text)
        plots.plot_throughput(f"{config.output}.png", result["rows"], result["device_kind"])
    print_results(result, text)


def compare(config: BenchmarkConfig) -> None:
    """Measures this checkout and another one alternately, writes and prints.

    Raises:
      UserError: see :func:`experiments.benchmarks.against.compare`.
    """
    result = against.compare(config, DEFAULTS)
    words = f"{command(config, DEFAULTS)} --against={result['against'][:12]}"
    result |= provenance(words, config.seed)
    text = against.table(result)
    if config.output:
        write_results(config.output, result, text)
    print_results(result, text)


if __name__ == "__main__":
    run(main, DEFAULTS)
