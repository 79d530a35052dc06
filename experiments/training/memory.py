"""The memory that a run needs at least, compared with what there is before it is allocated."""

import math
import sys

import jax
import numpy as np

from capsjax.models import CapsNetConfig
from capsjax.models import Config as ModelConfig
from capsjax.routing import CapsuleShards
from capsjax.votes import VOTES
from experiments.config import Config, UserError
from experiments.data import batching
from experiments.data.datasets import Dataset
from experiments.files import check_memory, size
from experiments.training import processes

FLOAT = 4  # bytes
COPIES = 4  # of the parameters: themselves, their gradients, two moments of Adam
MOMENTS = 2
# The same with what the programs of simulated devices, which share the memory, keep for themselves.
# 64 of them with 8.2 million parameters needed more than 24 GB.
COPIES_OF_A_SIMULATED_DEVICE = 12
MOST_SIMULATED = 256  # devices, each with threads
MANY_ITERATIONS = 50  # of routing, which are compiled for minutes


def check_fits(
    config: Config,
    dataset: Dataset,
    shape: tuple[int, int, int],
    devices: list[jax.Device],
    network: ModelConfig,
    parameters: int,
) -> None:
    """Refuses a run whose state or whose batch can't fit into the memory.

    Args:
      config: resolved. dataset: of the run. shape: of an input. devices: all of them.
      network: that is trained. parameters: their number.

    Raises:
      UserError: it needs more than there is; the message says what, and what would need less.
    """
    here = processes.own(devices)
    stats = here[0].memory_stats()
    have = stats["bytes_limit"] - stats["bytes_in_use"] if stats else None
    simulated = len(here) if here[0].platform == "cpu" else 1
    moments = MOMENTS / len(devices) if config.shard_optimizer else MOMENTS
    copies = COPIES - MOMENTS + moments
    copies = COPIES_OF_A_SIMULATED_DEVICE * simulated if simulated > 1 else copies
    state = copies * FLOAT * (parameters - _elsewhere(network) * (simulated == 1))
    what = f"the state of {parameters:,} parameters"
    cure = "a smaller --preset, fewer --primary_types or smaller images need less"
    if simulated > 1:
        what += f" on {simulated} simulated devices"
        cure = "a smaller --num_devices or --preset needs less"
    check_memory(state, what, cure, have)
    together = config.batch_size
    if config.microbatch:  # auto starts with any size and may end with one image a device
        together = len(devices) if config.microbatch == "auto" else config.microbatch
    each = -(-together // (len(devices) if simulated == 1 else len(devices) // len(here)))
    batch = FLOAT * each * _numbers_of_an_example(network, shape)
    check_memory(
        state + batch,
        f"a batch of {each:,} images of {shape[0]}x{shape[1]}x{shape[2]} ({size(batch)}) beside "
        f"{parameters:,} parameters ({size(state)})",
        "a smaller --batch_size, or --microbatch, needs less"
        if batch > state
        else "a smaller --preset or smaller images need less",
        have,
    )
    if config.max_shift > 2 * max(shape[:2]):
        raise UserError(
            f"--max_shift={config.max_shift}: the images have {shape[0]}x{shape[1]} pixels"
        )
    per_epoch = batching.steps_per_epoch(max(1, len(dataset.train_labels)), config.batch_size)
    orders = FLOAT * len(dataset.train_labels) * -(-config.log_every // per_epoch)
    check_memory(
        orders,
        f"the order of images for --log_every={config.log_every} steps",
        "log more often",
        have,
    )
    if (config.routing_iterations or 0) >= MANY_ITERATIONS:
        print(
            f"--routing_iterations={config.routing_iterations}: compiling them takes minutes",
            file=sys.stderr,
        )


def _elsewhere(network: ModelConfig) -> int:
    """The parameters of a divided layer of capsules that other devices have."""
    shards = getattr(network, "routing_implementation", None)
    if not isinstance(shards, CapsuleShards) or not VOTES[network.votes].per_input_capsule:
        return 0
    (I, T), J, D = network.class_inputs, network.num_classes, network.class_pose
    K = D if network.capsule_layers else network.primary_pose
    weights = math.prod(VOTES[network.votes].shape(I, J, D, K, T))
    return weights * (shards.count - 1) // shards.count


def _numbers_of_an_example(network: ModelConfig, shape: tuple[int, int, int]) -> int:
    """The numbers that the input of an example and its first layer have at least."""
    found = int(np.prod(shape))
    if isinstance(network, CapsNetConfig) and network.windows:
        first = network.windows[0]
        sides = [(n - first.kernel) // first.stride + 1 for n in shape[:2]]
        found += max(0, sides[0]) * max(0, sides[1])
    return found


def check_devices(count: int) -> None:
    """Refuses more simulated devices than any computer has use for.

    Raises:
      UserError: there are more than :data:`MOST_SIMULATED`.
    """
    if count > MOST_SIMULATED:
        raise UserError(f"--num_devices={count}: at most {MOST_SIMULATED} devices can be simulated")
