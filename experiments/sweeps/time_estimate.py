"""Estimates of the time of runs: from finished runs, or on CPU from the number of operations."""

from pathlib import Path

import jax
import numpy as np

from experiments.config import Config
from experiments.data import batching
from experiments.data.dataset_cache import cache_file
from experiments.data.image_listing import is_image_files
from experiments.sweeps import grouping
from experiments.sweeps.plan import PlannedRun
from experiments.tasks.base import Setup
from experiments.tasks.registry import find_program
from experiments.training import chunks
from experiments.training.devices import cache_folder
from experiments.training.setup import first_state, prepare, steps_per_epoch, total_steps
from kernels import bench

EFFICIENCY = 0.3  # rate of training relative to that of a matrix product
FIXED_SECONDS = 20.0  # of a run of any length: imports, compilation, figures


def estimate_seconds(runs: list[PlannedRun], defaults: Config) -> float | None:
    """Estimates the time of runs one after another, to a factor of two or three.

    Args:
      runs: at least one.
      defaults: of the program.

    Returns:
      Seconds; None on an accelerator, or with a data set that is not on this machine yet.
    """
    configs = [run.config for run in runs]
    if any(grouping.platform(c.accelerator) != "cpu" or not _has_data(c) for c in configs):
        return None
    rate, groups = EFFICIENCY * bench.matrix_rate(), {}
    for run in runs:
        groups.setdefault(grouping.group_key(run, defaults), []).append(run.config)
    program, total = find_program(defaults.program), 0.0
    for members in groups.values():
        total += len(members) * (FIXED_SECONDS + run_flops(prepare(program, members[0])) / rate)
    return total


def run_flops(setup: Setup) -> float:
    """Counts the floating-point operations of a run, as XLA does before it optimizes."""
    key = jax.random.key(0)
    state = jax.eval_shape(lambda: first_state(setup, key))
    examples = len(setup.dataset.train_labels)
    orders = jax.eval_shape(lambda: batching.epoch_orders(key, 0, examples, 1))
    step = jax.jit(chunks.chunk_body(setup, None, 1, lambda batch: batch))
    # A loop of any length counts once.
    counted = step.lower(state, setup.pipeline.source, orders, key, 1, 0).cost_analysis()["flops"]
    steps, per_epoch = total_steps(setup), steps_per_epoch(setup)
    tested = len(setup.dataset.test_labels)
    tested += steps // per_epoch * len(setup.dataset.validation_labels)
    # A forward pass is a third of a step.
    return counted * (steps + tested / setup.config.batch_size / 3)


def _has_data(config: Config) -> bool:
    name = "mnist" if config.dataset == "auto" else config.dataset
    here = name.endswith(".npz") or is_image_files(name)
    cached = cache_file(name, cache_folder(config.cache_dir))
    return name == "digits" or Path(name if here else cached).exists()


def seconds_left(
    runs: list[PlannedRun],
    missing: list[PlannedRun],
    entries: dict[str, dict],
    defaults: Config,
    jobs: int,
) -> float | None:
    """Estimates the time of missing runs from the finished runs of the same group, or from all.

    Args:
      runs: of the sweep.
      missing: those that are not finished.
      entries: of the ledger.
      defaults: of the program.
      jobs: number of processes at once.

    Returns:
      Seconds; None where no run has finished.
    """
    measured: dict[str, list[float]] = {}
    for run in runs:
        if "summary" in entries.get(run.key, {}):
            key = grouping.group_key(run, defaults)
            measured.setdefault(key, []).append(entries[run.key]["seconds"])
    if not measured:
        return None if missing else 0.0
    average = float(np.mean(sum(measured.values(), [])))
    similar = (measured.get(grouping.group_key(run, defaults), [average]) for run in missing)
    return float(sum(map(np.mean, similar))) / jobs


def in_words(seconds: float | None) -> str:
    """Formats a duration, which is unknown where it is None."""
    if seconds is None:
        return "unknown time"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
