"""How long runs take on a CPU of which none has been done: a guess, from their arithmetic."""

from pathlib import Path

import jax

from capsjax import train
from experiments import groups, loop, preparation, runtime, sampling
from experiments.config import Config
from experiments.data import cache_file
from experiments.plan import Run
from experiments.preparation import Setup
from kernels import bench

SHARE = 0.3  # of the rate of a matrix product, what training reaches
START = 20.0  # seconds of a run that do not grow with its length: imports, compilation, pictures


def seconds(runs: list[Run], defaults: Config) -> float | None:
    """Time that runs need one after another, within a factor of two or three.

    Args:
      runs: at least one. defaults: of the program.

    Returns:
      None where that cannot be said at once: on an accelerator, or with a data set that has not
      been read before.
    """
    configs = [run.config for run in runs]
    if any(groups.platform(c.accelerator) != "cpu" or not _at_hand(c) for c in configs):
        return None
    rate, families = SHARE * bench.matrix_rate(), {}
    for run in runs:
        families.setdefault(groups.family(run, defaults), []).append(run.config)
    return sum(
        len(members) * (START + work(preparation.prepare(members[0])) / rate)
        for members in families.values()
    )


def work(setup: Setup) -> float:
    """Floating-point operations of a run, as XLA counts them before it optimises."""
    key = jax.random.key(0)
    state = jax.eval_shape(lambda: train.init_state(setup.model, setup.optimizer, key))
    examples = len(setup.dataset.train_labels)
    orders = jax.eval_shape(lambda: sampling.epoch_orders(key, 0, examples, 1))
    step = jax.jit(loop.chunk_body(setup, None, 1, lambda batch: batch))
    # A loop of any length counts once.
    counted = step.lower(state, setup.stream.source, orders, key, 1, 0).cost_analysis()["flops"]
    steps, per_epoch = preparation.total_steps(setup), preparation.steps_per_epoch(setup)
    tested = len(setup.dataset.test_labels)
    tested += steps // per_epoch * len(setup.dataset.validation_labels)
    # A forward pass is a third of a step.
    return counted * (steps + tested / setup.config.batch_size / 3)


def _at_hand(config: Config) -> bool:
    name = "mnist" if config.dataset == "auto" else config.dataset
    cached = cache_file(name, runtime.cache_folder(config.cache_dir))
    return name == "digits" or Path(name if name.endswith(".npz") else cached).exists()
