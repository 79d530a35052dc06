"""How long runs take on a CPU of which none has been done: a guess, from their arithmetic."""

from pathlib import Path

import jax
import numpy as np

from capsjax import train
from experiments.config import Config
from experiments.data import batching
from experiments.data.datasets import cache_file
from experiments.sweeps import grouping
from experiments.sweeps.plan import PlannedRun
from experiments.tasks.base import Setup
from experiments.tasks.registry import find_program
from experiments.training import loop
from experiments.training.devices import cache_folder
from experiments.training.setup import prepare, steps_per_epoch, total_steps
from kernels import bench

SHARE = 0.3  # of the rate of a matrix product, what training reaches
START = 20.0  # seconds of a run that do not grow with its length: imports, compilation, pictures


def seconds(runs: list[PlannedRun], defaults: Config) -> float | None:
    """Time that runs need one after another, within a factor of two or three.

    Args:
      runs: at least one. defaults: of the program.

    Returns:
      None where that cannot be said at once: on an accelerator, or with a data set that has not
      been read before.
    """
    configs = [run.config for run in runs]
    if any(grouping.platform(c.accelerator) != "cpu" or not _at_hand(c) for c in configs):
        return None
    rate, families = SHARE * bench.matrix_rate(), {}
    for run in runs:
        families.setdefault(grouping.family(run, defaults), []).append(run.config)
    return sum(
        len(members) * (START + work(prepare(find_program(defaults.program), members[0])) / rate)
        for members in families.values()
    )


def work(setup: Setup) -> float:
    """Floating-point operations of a run, as XLA counts them before it optimises."""
    key = jax.random.key(0)
    state = jax.eval_shape(lambda: train.init_state(setup.model, setup.optimizer, key))
    examples = len(setup.dataset.train_labels)
    orders = jax.eval_shape(lambda: batching.epoch_orders(key, 0, examples, 1))
    step = jax.jit(loop.chunk_body(setup, None, 1, lambda batch: batch))
    # A loop of any length counts once.
    counted = step.lower(state, setup.pipeline.source, orders, key, 1, 0).cost_analysis()["flops"]
    steps, per_epoch = total_steps(setup), steps_per_epoch(setup)
    tested = len(setup.dataset.test_labels)
    tested += steps // per_epoch * len(setup.dataset.validation_labels)
    # A forward pass is a third of a step.
    return counted * (steps + tested / setup.config.batch_size / 3)


def _at_hand(config: Config) -> bool:
    name = "mnist" if config.dataset == "auto" else config.dataset
    cached = cache_file(name, cache_folder(config.cache_dir))
    return name == "digits" or Path(name if name.endswith(".npz") else cached).exists()


def seconds_left(
    runs: list[PlannedRun],
    missing: list[PlannedRun],
    entries: dict[str, dict],
    defaults: Config,
    jobs: int,
) -> float | None:
    """Time that missing runs need: what runs of the same kind took, or else all on average.

    Args:
      runs: of the sweep. missing: those that are to be done. entries: of the ledger.
      defaults: of the program. jobs: processes at once.

    Returns:
      None where nothing has been measured.
    """
    measured: dict[str, list[float]] = {}
    for run in runs:
        if "summary" in entries.get(run.key, {}):
            kind = grouping.family(run, defaults)
            measured.setdefault(kind, []).append(entries[run.key]["seconds"])
    if not measured:
        return None if missing else 0.0
    usual = float(np.mean(sum(measured.values(), [])))
    kinds = (measured.get(grouping.family(run, defaults), [usual]) for run in missing)
    return float(sum(map(np.mean, kinds))) / jobs


def in_words(seconds: float | None) -> str:
    """A length of time."""
    if seconds is None:
        return "unknown time"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
