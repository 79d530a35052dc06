"""What a benchmark measures: functions that do some images and say how many, and a fair clock."""

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from capsjax.models import CapsNetConfig
from experiments.config import Config, UserError
from experiments.data import batching, datasets
from experiments.data.augment import to_unit
from experiments.tasks.base import Setup
from experiments.training import loop
from experiments.training.setup import initial_state, training_inputs
from kernels import bench

CHUNK = Config().log_every  # batches in a call, as in training
LEAST = 0.2  # seconds of a measurement
TRAINING, INFERENCE, ONE_CALL = FUNCTIONS = ("training", "inference", "one call")


class Contestant(NamedTuple):
    """One function of one network."""

    run: Callable[[], int]  # gives the number of images that it has done
    bytes: int | None = None  # of arguments, results and temporaries, as compiled


Contestants = dict[tuple[str, str], Contestant]  # by network and function


def random_images(config: Config, pixels: int) -> datasets.Dataset:
    """Two batches of random square images; speed does not depend on what is on them."""
    rng = np.random.default_rng(config.seed)
    count = 2 * config.batch_size
    images = rng.integers(0, 256, (count, pixels, pixels, 1), np.uint8)
    labels = rng.integers(0, 10, count, np.int32)
    names = tuple("0123456789")
    return datasets.Dataset(
        "random", "random", images, labels, images[:0], labels[:0], images, labels, names
    )


def unit(setup: Setup) -> np.ndarray:
    """A batch of images in [0, 1]."""
    return np.asarray(to_unit(setup.dataset.train_images[: setup.config.batch_size]))


def ours(setup: Setup) -> Contestants:
    """Training, inference in chunks of batches, and inference of one batch in one call."""
    state = initial_state(setup, couplings=False)
    source, key = training_inputs(setup)
    order = batching.epoch_orders(key, 0, len(setup.dataset.train_labels))
    size, count = setup.config.batch_size, jnp.int32(CHUNK)
    params = jax.tree.map(jnp.copy, state.params)  # the chunk takes over those of the state
    images = to_unit(source.images)

    def scores(params, images):
        return setup.model.apply(params, images, method="encode").activation

    def several(params, images):
        def one(n, total):
            part = jax.lax.dynamic_slice_in_dim(images, n % 2 * size, size)
            return total + scores(params, part)

        return jax.lax.fori_loop(0, CHUNK, one, jnp.zeros((size, setup.dataset.num_classes)))

    chunk, memory = compiled(loop.make_chunk(setup), state, source, order, key, count)
    infer, infer_memory = compiled(jax.jit(several), params, images)
    once, once_memory = compiled(jax.jit(scores), params, images[:size])
    carried = [state]

    def train():
        carried[0], _ = jax.block_until_ready(chunk(carried[0], source, order, key, count))
        return CHUNK * size

    def done(images, function, *arguments):
        jax.block_until_ready(function(*arguments))
        return images

    found = {
        TRAINING: Contestant(train, memory),
        INFERENCE: Contestant(
            functools.partial(done, CHUNK * size, infer, params, images), infer_memory
        ),
        ONE_CALL: Contestant(
            functools.partial(done, size, once, params, images[:size]), once_memory
        ),
    }
    return {("capsjax", name): contestant for name, contestant in found.items()}


def compiled(function: Callable, *arguments) -> tuple[Callable, int | None]:
    """A jitted function ready to be called, and the bytes that it needs if it can say so."""
    if not hasattr(function, "lower"):  # pmap by way of a function of ours
        return function, None
    ready = function.lower(*arguments).compile()
    m = ready.memory_analysis()
    together = m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes
    return ready, together - m.alias_size_in_bytes


def theirs(setup: Setup) -> Contestants:
    """Training and inference of the PyTorch CapsNet, eager and compiled.

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
    params = jax.device_get(initial_state(setup).params)
    images, labels = unit(setup), setup.dataset.train_labels[: setup.config.batch_size]
    exact = float(jnp.mean(jax.jit(setup.loss)(params, images, labels)[0]))
    found = {}
    for name, fused in (("torch", False), ("torch, compiled", True)):
        model = peer.CapsNet(m, params).to(device)
        if abs(peer.loss(model, images, labels) / exact - 1) > 1e-4:
            raise UserError("the PyTorch network computes another loss than ours")
        train, infer = peer.functions(model, images, labels, fused)
        found |= {(name, TRAINING): Contestant(train), (name, INFERENCE): Contestant(infer)}
    return found


def torch_capsnet():
    """The module of the PyTorch network.

    Raises:
      UserError: PyTorch is not installed.
    """
    try:
        from experiments.benchmarks import torch_capsnet
    except ImportError as error:
        raise UserError(f"--compare=torch needs PyTorch: {error}") from error
    return torch_capsnet


def flops_per_image(config: CapsNetConfig) -> int:
    """Multiplications and additions of one training image with direct convolutions.

    Forward, gradient of the weights and gradient of the inputs each take two a weight use.
    Routing is left out, as is the unneeded gradient of the image: both are below 3%. Of a network
    without further convolutions and capsule layers.
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


def in_turn(
    contestants: Contestants, repetitions: int
) -> tuple[dict[tuple[str, str], list[float]], list[float]]:
    """Images per second of each, and GFLOP/s of a matrix product, measured alternately."""
    for contestant in contestants.values():
        contestant.run()
    rates, products = {name: [] for name in contestants}, []
    for _ in range(repetitions):
        for name, contestant in contestants.items():
            done, start = 0, time.perf_counter()
            while (passed := time.perf_counter() - start) < LEAST or not done:
                done += contestant.run()
            rates[name].append(done / passed)
        products.append(bench.matrix_rate() / 1e9)
    return rates, products
