"""Images per second: the implementations that are measured, and a clock that treats them alike.

An implementation is a function that processes some images and returns their number.
"""

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from capsjax.models import CapsNetConfig
from capsjax.preprocessing import to_unit
from experiments.config import Config, UserError
from experiments.data import batching, datasets
from experiments.tasks.base import Setup
from experiments.training import chunks
from experiments.training.setup import initial_state, training_inputs
from kernels import bench

CHUNK = Config().log_every  # batches in a call, as in training
MIN_SECONDS = 0.2  # of a measurement
TRAINING, INFERENCE, ONE_CALL = FUNCTIONS = ("training", "inference", "one call")


class Implementation(NamedTuple):
    """One function of one network."""

    run: Callable[[], int]  # returns the number of images that it has processed
    bytes: int | None = None  # of arguments, results and temporaries, as compiled


Implementations = dict[tuple[str, str], Implementation]  # by network and function


def random_images(config: Config, pixels: int) -> datasets.Dataset:
    """Returns two batches of random square images; speed does not depend on their content."""
    rng = np.random.default_rng(config.seed)
    count = 2 * config.batch_size
    images = rng.integers(0, 256, (count, pixels, pixels, 1), np.uint8)
    labels = rng.integers(0, 10, count, np.int32)
    names = tuple("0123456789")
    return datasets.Dataset(
        "random", "random", images, labels, images[:0], labels[:0], images, labels, names
    )


def unit_images(setup: Setup) -> np.ndarray:
    """Returns a batch of training images in [0, 1]."""
    return np.asarray(to_unit(setup.dataset.train_images[: setup.config.batch_size]))


def capsjax_implementations(setup: Setup) -> Implementations:
    """Returns training, inference in chunks of batches, and inference of one batch per call."""
    state = initial_state(setup, sources=False)
    source, key = training_inputs(setup)
    order = batching.epoch_orders(key, 0, len(setup.dataset.train_labels))
    size, count = setup.config.batch_size, jnp.int32(CHUNK)
    variables = jax.tree.map(jnp.copy, state.variables)  # the chunk takes over those of the state
    images = to_unit(source.images)

    def scores(variables, images):
        return setup.model.apply(variables, images, method="encode").activation

    def several(variables, images):
        def one(n, total):
            part = jax.lax.dynamic_slice_in_dim(images, n % 2 * size, size)
            return total + scores(variables, part)

        return jax.lax.fori_loop(0, CHUNK, one, jnp.zeros((size, setup.dataset.num_classes)))

    chunk, memory = compiled(chunks.make_chunk(setup), state, source, order, key, count)
    infer, infer_memory = compiled(jax.jit(several), variables, images)
    once, once_memory = compiled(jax.jit(scores), variables, images[:size])
    carried = [state]

    def train():
        carried[0], _ = jax.block_until_ready(chunk(carried[0], source, order, key, count))
        return CHUNK * size

    def done(images, function, *arguments):
        jax.block_until_ready(function(*arguments))
        return images

    found = {
        TRAINING: Implementation(train, memory),
        INFERENCE: Implementation(
            functools.partial(done, CHUNK * size, infer, variables, images), infer_memory
        ),
        ONE_CALL: Implementation(
            functools.partial(done, size, once, variables, images[:size]), once_memory
        ),
    }
    return {("capsjax", name): implementation for name, implementation in found.items()}


def compiled(function: Callable, *arguments) -> tuple[Callable, int | None]:
    """Returns a jitted function compiled, and the bytes that it needs if they are known."""
    if not hasattr(function, "lower"):  # a Python function around pmap
        return function, None
    ready = function.lower(*arguments).compile()
    m = ready.memory_analysis()
    together = m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes
    return ready, together - m.alias_size_in_bytes


def torch_implementations(setup: Setup) -> Implementations:
    """Returns training and inference of the PyTorch CapsNet, eager and compiled.

    Raises:
      UserError: PyTorch is absent, the network is not the paper's, or the two networks do not
        compute the same loss.
    """
    baseline, m = torch_capsnet(), setup.model_config
    if m.routing != "dynamic" or m.capsule_layers or m.decoder is None or m.squash != "auto":
        raise UserError("--compare=torch supports only the paper's network with its decoder")
    device = {"cpu": "cpu", "gpu": "cuda"}.get(setup.devices[0].platform)
    if device is None or (device == "cuda" and not baseline.torch.cuda.is_available()):
        raise UserError(f"--compare=torch: this PyTorch has no {setup.devices[0].platform}")
    params = jax.device_get(initial_state(setup).params)
    images, labels = unit_images(setup), setup.dataset.train_labels[: setup.config.batch_size]
    exact = float(jnp.mean(jax.jit(setup.loss)(params, images, labels)[0]))
    found = {}
    for name, fused in (("torch", False), ("torch, compiled", True)):
        model = baseline.CapsNet(m, params).to(device)
        if abs(baseline.loss(model, images, labels) / exact - 1) > 1e-4:
            raise UserError(
                "--compare=torch supports only the paper's network for MNIST: the loss of this one "
                "differs in PyTorch, which has no factor on the sums of votes"
            )
        train, infer = baseline.functions(model, images, labels, fused)
        found |= {(name, TRAINING): Implementation(train), (name, INFERENCE): Implementation(infer)}
    return found


def torch_capsnet():
    """Returns the module of the PyTorch network.

    Raises:
      UserError: PyTorch is not installed.
    """
    try:
        from experiments.benchmarks import torch_capsnet
    except ImportError as error:
        raise UserError(f"--compare=torch needs PyTorch: {error}") from error
    return torch_capsnet


def flops_per_image(config: CapsNetConfig) -> int:
    """Counts multiplications and additions of one training image with direct convolutions.

    Forward pass, gradient of the weights and gradient of the inputs each take two operations for
    every use of a weight. Routing and the gradient of the image, which is not computed, are
    ignored; both are below 3%.

    Args:
      config: a network without further convolutions and capsule layers.
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


def measure_in_turn(
    implementations: Implementations, repetitions: int
) -> tuple[dict[tuple[str, str], list[float]], list[float]]:
    """Measures images per second of each, and GFLOP/s of a matrix product, alternately.

    Args:
      implementations: each is called once before the measurements.
      repetitions: number of measurements of each.
    """
    for implementation in implementations.values():
        implementation.run()
    rates, products = {name: [] for name in implementations}, []
    for _ in range(repetitions):
        for name, implementation in implementations.items():
            done, start = 0, time.perf_counter()
            while (passed := time.perf_counter() - start) < MIN_SECONDS or not done:
                done += implementation.run()
            rates[name].append(done / passed)
        products.append(bench.matrix_rate() / 1e9)
    return rates, products
