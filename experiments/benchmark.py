"""Speed of the whole training step, as one JSON line.

    python -m experiments.benchmark --batch_size=128        about 2 minutes on 2 cores

images_per_second counts augmentation, forward and backward pass and Adam, with the data
on the device, in chunks of steps as in training. matmul_gflops is the rate of a 2048^3
float32 matrix product, measured between the chunks; share_of_limit says how the step
compares with a direct convolution that runs at that rate (it may exceed one, because the
Fourier form needs fewer operations). first_step_seconds is the time from starting
``python -m experiments.mnist`` to its first finished step, without and with compiled
programs in the cache. Each figure is the median of the repetitions, with the range.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from capsjax.models import CapsNetConfig
from experiments import data, loop, report, sampling
from experiments.config import Config, run
from experiments.errors import UserError
from kernels.program import commit

DEFAULTS = Config(program="benchmark", dataset="random", batch_size=128)
REPETITIONS = 7
CHUNK = 4  # steps
SIDE = 2048  # of the matrix product


def main(config: Config) -> None:
    """Measure and print."""
    if config.model != "capsnet" or config.dataset != "random":
        raise UserError("experiments.benchmark measures --model=capsnet on random images")
    command = config.command(DEFAULTS)
    first = first_step_seconds(config)
    setup = loop.prepare(config, random_images(config))
    config = setup.config
    rates, products = throughput(setup)
    limit = 1e9 * float(np.median(products)) / flops_per_image(setup.model_config)
    result = {
        "program": config.program,
        "command": command,
        "batch_size": config.batch_size,
        "images_per_second": summarize(rates),
        "matmul_gflops": summarize(products),
        "gflop_per_image": round(flops_per_image(setup.model_config) / 1e9, 3),
        "share_of_limit": round(float(np.median(rates)) / limit, 3),
        "peak_memory_mb": report.peak_memory_mb(setup.devices[0]),
        "first_step_seconds": first,
        "accelerator": setup.devices[0].platform,
        "device_kind": setup.devices[0].device_kind,
        "num_devices": len(setup.devices),
        "cpu_count": os.cpu_count(),
        "versions": report.versions(),
        "commit": commit(),
    }
    print(json.dumps(result))


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


def throughput(setup: loop.Setup) -> tuple[list[float], list[float]]:
    """Images per second of training, and GFLOP/s of a matrix product, alternately."""
    chunk, state = loop.make_chunk(setup), loop.initial_state(setup)
    source, key = loop.training_inputs(setup)
    order = sampling.epoch_order(key, 0, len(setup.dataset.train_labels))
    square = jax.random.normal(key, (SIDE, SIDE))
    product = jax.jit(jnp.matmul)

    state, _ = jax.block_until_ready(chunk(state, source, order, key, CHUNK))
    jax.block_until_ready(product(square, square))
    rates, products = [], []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(chunk(state, source, order, key, CHUNK))
        rates.append(CHUNK * setup.config.batch_size / (time.perf_counter() - start))
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
    run(main, DEFAULTS)
