"""The pieces in which a batch is computed, ``--microbatch``."""

import dataclasses
import sys

import jax

from capsjax import train
from capsjax.functional import Model
from experiments import files
from experiments.config import Config, UserError
from experiments.data import batching
from experiments.tasks.base import Setup

SHARE = 0.8  # of the free memory that a step may take


def check(config: Config, devices: int, model: Model) -> None:
    """Refuses pieces that have no equal size, or would change the result.

    Raises:
      UserError: the reason.
    """
    given = f"--microbatch={config.microbatch}"
    if config.microbatch in (0, config.batch_size):
        return
    if model.has_state:
        raise UserError(f"{given}: batch normalization needs the whole batch in one piece")
    if config.microbatch == "auto":
        return
    if config.batch_size % config.microbatch or config.microbatch % devices:
        among = f" and divided among {devices} devices" if devices > 1 else ""
        raise UserError(
            f"{given}: --batch_size={config.batch_size} can't be cut into pieces of "
            f"{config.microbatch}{among}"
        )


def number(config: Config) -> int:
    """Returns the number of pieces of a batch; one where ``auto`` has not been decided."""
    size = config.microbatch
    return config.batch_size // size if isinstance(size, int) and size else 1


def choose(setup: Setup, make_body) -> Setup:
    """Puts a number in the place of ``--microbatch=auto``: the largest piece that memory holds.

    The compiler is asked for the memory of a step in one piece, in two, and so on.

    Args:
      setup: of the run.
      make_body: see :func:`experiments.training.devices.parallelize`, of a setup.
    """
    if setup.config.microbatch != "auto":
        return setup
    own, free = setup.config.batch_size // len(setup.devices), free_bytes(setup.devices[0])
    for count in (count for count in range(1, own + 1) if own % count == 0):
        size = setup.config.batch_size // count
        found = setup._replace(config=dataclasses.replace(setup.config, microbatch=size))
        needed = step_bytes(found, make_body)
        if needed <= SHARE * free:
            break
    print(
        f"pieces of {size} images: a step needs {needed / 1e6:,.0f} MB, {free / 1e6:,.0f} are free",
        file=sys.stderr,
    )
    return found


def step_bytes(setup: Setup, make_body) -> int:
    """Returns the memory of arguments, results and temporaries of a step on one device."""
    body = make_body(setup, None, len(setup.devices), lambda batch: batch)

    def step(key, source, state, orders):
        return body(state, source, orders, key, 1, 0)

    key, examples = jax.random.key(0), len(setup.dataset.train_labels)
    state, orders = jax.eval_shape(
        lambda: (
            train.init_state(setup.model, setup.optimizer, key, average=bool(setup.config.ema)),
            batching.epoch_orders(key, 0, examples),
        )
    )
    arguments = key, setup.pipeline.source, state, orders
    memory = jax.jit(step, donate_argnums=2).lower(*arguments).compile().memory_analysis()
    together = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return together + memory.temp_size_in_bytes - memory.alias_size_in_bytes


def free_bytes(device: jax.Device) -> int:
    """Returns the free memory of an accelerator, or on CPU what this process may take."""
    if stats := device.memory_stats():
        return stats["bytes_limit"] - stats["bytes_in_use"]
    return files.free_bytes()
