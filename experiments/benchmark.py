"""Speed of the network, training and inference, as one JSON and a table.

    python -m experiments.benchmark                                     about 3 minutes on 2 cores
    python -m experiments.benchmark --batch_sizes=1,8,32,128 --output=results/benchmark
    python -m experiments.benchmark --compare=torch                     where PyTorch is installed

images_per_second of training counts augmentation, forward and backward pass and Adam, with the
data on the device, in chunks of steps as in training; of inference, the class scores. All is
measured in turn, again and again, so that a noisy machine is as unfair to one as to another; a
figure is the median of the repetitions, with the range. matmul_gflops is the rate of a 2048^3
float32 matrix product, measured in the same turns; share_of_limit says how a figure compares
with direct convolutions that run at that rate (it may exceed one, because the Fourier form needs
fewer operations). first_step_seconds is the time from starting ``python -m experiments.mnist``
to its first finished step, without and with compiled programs in the cache.

``--compare=torch`` measures our PyTorch CapsNet too (:mod:`experiments.torch_capsnet`), eager and
compiled, from the same parameters; its loss must first equal ours. It trains on one batch again
and again, without augmentation. PyTorch and JAX use all cores, in turn.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from capsjax.models import CapsNetConfig
from experiments import config as config_lib
from experiments import data, drawing, io, loop, report, sampling
from experiments.config import Config
from experiments.errors import UserError
from kernels import program

DEFAULTS = Config(program="benchmark", dataset="random", batch_size=128)
REPETITIONS = 7
CHUNK = 4  # steps
SIDE = 2048  # of the matrix product
LEAST = 0.2  # seconds of a measurement
TRAINING, INFERENCE = "training", "inference"
COLUMNS = ("implementation", "function", "batch", "images/s", "range", "share of limit")


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Flags of the benchmark, and all of the programs'."""
    config_lib.define_flags(DEFAULTS, flag_values)
    common = {"flag_values": flag_values}
    flags.DEFINE_list("batch_sizes", None, "several, in place of --batch_size", **common)
    flags.DEFINE_boolean("first_step", True, "measure how long a program needs to it", **common)
    flags.DEFINE_enum("compare", "none", ("none", "torch"), "what to measure beside", **common)
    flags.DEFINE_string("output", None, "write OUTPUT.json, OUTPUT.md and OUTPUT.png", **common)


def main() -> None:
    """Measure and print."""
    F = flags.FLAGS
    config = config_lib.from_flags(DEFAULTS, F)
    if config.model != "capsnet" or config.dataset != "random":
        raise UserError("experiments.benchmark measures --model=capsnet on random images")
    sizes = parse_sizes(F.batch_sizes) if F.batch_sizes else [config.batch_size]
    command = config.command(DEFAULTS)
    if F.batch_sizes:
        command += f" --batch_sizes={','.join(map(str, sizes))}"
    if F.compare != "none":
        command += f" --compare={F.compare}"
    result = measure(config, sizes, F.compare == "torch") | {"command": command}
    if F.first_step:
        last = dataclasses.replace(config, batch_size=sizes[-1])
        result["first_step_seconds"] = first_step_seconds(last)
    if F.output:
        io.write_json(Path(f"{F.output}.json"), result)
        text = f"{table(result['rows'])}\n\n`{command}`, commit {result['commit']}\n"
        Path(f"{F.output}.md").write_text(text)
        drawing.throughput(f"{F.output}.png", result["rows"], result["device_kind"])
    print(table(result["rows"]), file=sys.stderr)
    print(json.dumps(result))


def parse_sizes(words: list[str]) -> list[int]:
    """Batch sizes.

    Raises:
      UserError: one is no positive integer.
    """
    if not all(word.strip().isdigit() and int(word) for word in words):
        raise UserError(f"--batch_sizes={','.join(words)}: numbers such as 1,32,128 are needed")
    return [int(word) for word in words]


def measure(config: Config, sizes: list[int], torch: bool) -> dict:
    """Everything about a network, at several batch sizes."""
    rows, products = [], []
    for size in sizes:
        print(f"batches of {size} ...", file=sys.stderr)
        sized = dataclasses.replace(config, batch_size=size)
        setup = loop.prepare(sized, random_images(sized))
        contestants = ours(setup) | (theirs(setup) if torch else {})
        rates, product = in_turn(contestants)
        products += product
        work = {TRAINING: flops_per_image(setup.model_config)}
        work[INFERENCE] = work[TRAINING] / 3
        for (implementation, function), values in rates.items():
            share = np.median(values) * work[function] / np.median(product) / 1e9
            row = {"implementation": implementation, "function": function, "batch_size": size}
            row |= {"images_per_second": summarize(values), "share_of_limit": round(share, 3)}
            rows.append(row)
    device = setup.devices[0]
    return {
        "program": config.program,
        "rows": rows,
        "matmul_gflops": summarize(products),
        "gflop_per_image": round(work[TRAINING] / 1e9, 3),
        "peak_memory_mb": report.peak_memory_mb(device),
        "accelerator": device.platform,
        "device_kind": device.device_kind,
        "num_devices": len(setup.devices),
        "cpu_count": os.cpu_count(),
        "versions": report.versions()
        | ({"torch": torch_capsnet().torch.__version__} if torch else {}),
        "commit": program.commit(),
    }


def table(rows: list[dict]) -> str:
    """Rows of a result as Markdown."""

    def cells(row):
        rate = row["images_per_second"]
        yield from (row["implementation"], row["function"], row["batch_size"])
        yield from (f"{rate['median']:.0f}", f"{rate['min']:.0f} to {rate['max']:.0f}")
        yield f"{row['share_of_limit']:.2f}"

    lines = [COLUMNS, ["---"] * len(COLUMNS), *(map(str, cells(row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def summarize(values: list[float]) -> dict[str, float]:
    """Median and range."""
    return {
        "median": round(float(np.median(values)), 2),
        "min": round(min(values), 2),
        "max": round(max(values), 2),
    }


def random_images(config: Config) -> data.Dataset:
    """As many random 28x28 images as two batches hold; speed does not depend on pixels."""
    rng = np.random.default_rng(config.seed)
    count = 2 * config.batch_size
    images = rng.integers(0, 256, (count, 28, 28, 1), np.uint8)
    labels = rng.integers(0, 10, count, np.int32)
    names = tuple("0123456789")
    return data.Dataset(
        "random", "random", images, labels, images[:0], labels[:0], images, labels, names
    )


def flops_per_image(config: CapsNetConfig) -> int:
    """Multiplications and additions of one training image with direct convolutions.

    Forward, gradient of the weights and gradient of the inputs each take two a weight use.
    Routing is left out, as is the unneeded gradient of the image: both are below 3%.
    """
    height, width, channels = config.image_shape
    h, w = height - config.conv_kernel + 1, width - config.conv_kernel + 1
    conv = h * w * config.conv_kernel**2 * channels * config.conv_channels
    primary = config.input_capsules * config.primary_pose
    primary *= config.primary_kernel**2 * config.conv_channels
    votes = config.input_capsules * config.num_classes * config.class_pose * config.primary_pose
    decoder = 0
    if config.decoder is not None:
        sizes = (config.num_classes * config.class_pose, *config.decoder, height * width * channels)
        decoder = sum(m * n for m, n in zip(sizes, sizes[1:]))
    return 3 * 2 * (conv + primary + votes + decoder)


def ours(setup: loop.Setup) -> dict[tuple[str, str], Callable[[], int]]:
    """What to measure of the network: functions that do some images and say how many."""
    chunk, state = loop.make_chunk(setup), loop.initial_state(setup)
    source, key = loop.training_inputs(setup)
    order = sampling.epoch_order(key, 0, len(setup.dataset.train_labels))
    images = jnp.asarray(unit(setup))
    params = jax.tree.map(jnp.copy, state.params)  # the chunk takes over those of the state
    scores = jax.jit(lambda params, images: setup.model.apply(params, images, method="encode"))
    carried = [state]

    def train():
        carried[0], _ = jax.block_until_ready(chunk(carried[0], source, order, key, CHUNK))
        return CHUNK * setup.config.batch_size

    def infer():
        jax.block_until_ready(scores(params, images).activation)
        return len(images)

    return {("capsjax", TRAINING): train, ("capsjax", INFERENCE): infer}


def theirs(setup: loop.Setup) -> dict[tuple[str, str], Callable[[], int]]:
    """The same of the PyTorch CapsNet, eager and compiled.

    Raises:
      UserError: PyTorch is absent, the network is another than the paper's, or the two networks
        do not compute the same loss.
    """
    peer, m = torch_capsnet(), setup.model_config
    if m.routing != "dynamic" or m.capsule_layers or m.decoder is None or m.squash != "auto":
        raise UserError("--compare=torch knows the paper's network only, with its decoder")
    device = {"cpu": "cpu", "gpu": "cuda"}.get(setup.devices[0].platform)
    if device is None or (device == "cuda" and not peer.torch.cuda.is_available()):
        raise UserError(f"--compare=torch: this PyTorch has no {setup.devices[0].platform}")
    params = jax.device_get(loop.initial_state(setup).params)
    images, labels = unit(setup), setup.dataset.train_labels[: setup.config.batch_size]
    exact = float(jnp.mean(jax.jit(setup.loss)(params, images, labels)[0]))
    found = {}
    for name, compiled in (("torch", False), ("torch, compiled", True)):
        model = peer.CapsNet(m, params).to(device)
        if abs(peer.loss(model, images, labels) / exact - 1) > 1e-4:
            raise UserError("the PyTorch network computes another loss than ours")
        train, infer = peer.functions(model, images, labels, compiled)
        found |= {(name, TRAINING): train, (name, INFERENCE): infer}
    return found


def torch_capsnet():
    """The module of the PyTorch network.

    Raises:
      UserError: PyTorch is not installed.
    """
    try:
        from experiments import torch_capsnet
    except ImportError as error:
        raise UserError(f"--compare=torch needs PyTorch: {error}") from error
    return torch_capsnet


def unit(setup: loop.Setup) -> np.ndarray:
    """A batch of images in [0, 1]."""
    images = setup.dataset.train_images[: setup.config.batch_size]
    return images.astype(np.float32) / 255


def in_turn(
    contestants: dict[tuple[str, str], Callable[[], int]],
) -> tuple[dict[tuple[str, str], list[float]], list[float]]:
    """Images per second of each, and GFLOP/s of a matrix product, measured alternately."""
    square = jax.random.normal(jax.random.key(0), (SIDE, SIDE))
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(square, square))
    for run in contestants.values():
        run()
    rates, products = {name: [] for name in contestants}, []
    for _ in range(REPETITIONS):
        for name, run in contestants.items():
            done, start = 0, time.perf_counter()
            while (passed := time.perf_counter() - start) < LEAST or not done:
                done += run()
            rates[name].append(done / passed)
        start = time.perf_counter()
        for _ in range(3):
            jax.block_until_ready(product(square, square))
        products.append(3 * 2 * SIDE**3 / (time.perf_counter() - start) / 1e9)
    return rates, products


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


if __name__ == "__main__":
    define_flags()
    program.run(main, UserError)
