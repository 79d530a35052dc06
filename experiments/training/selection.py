"""Which weights a run reports: the last or averaged ones, of the last or of the best validation.

Test data have no part in it.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from capsjax.functional import join
from capsjax.train import TrainState
from experiments.config import Config, UserError
from experiments.data import batching
from experiments.tasks.base import Setup
from experiments.training import windows
from experiments.training.setup import (
    make_orders,
    random_keys,
    steps_per_epoch,
    training_inputs,
)

STATISTICS_BATCHES = 100  # most batches over which the statistics of averaged weights are computed


def check(setup: Setup) -> None:
    """Checks that there are validation data if they are to choose the weights or the end.

    Raises:
      UserError: there are none.
    """
    config = setup.config
    flags = {
        "--keep=best": config.keep == "best",
        f"--early_stopping={config.early_stopping}": config.early_stopping > 0,
    }
    for flag, given in flags.items():
        if given and not len(setup.pipeline.held_out("validation")[1]):
            raise UserError(f"{flag} needs validation data: raise --validation_fraction")


def make_current(setup: Setup) -> Callable[[Config, TrainState], Any]:
    """Returns ``current(config, state)``, the variables to validate: averaged ones with ``--ema``.

    ``config`` is that of the run whose state it is.
    """
    if not setup.config.ema:
        return lambda config, state: state.variables
    if not setup.model.has_state:
        return lambda config, state: state.average
    if windows.is_stored(setup):
        statistics, source = windows_statistics(setup), None
    else:
        statistics, (source, _) = jax.jit(make_statistics(setup)), training_inputs(setup)

    def current(config, state):
        _, key = random_keys(config)
        return join(state.average, statistics(state.average, state.stats, source, key))

    return current


def make_statistics(setup: Setup) -> Callable:
    """Returns ``statistics(params, stats, source, key)``, the statistics that fit some weights.

    They are the means of those of single batches, the first ones of training, at most
    :data:`STATISTICS_BATCHES` and an epoch. ``stats`` only give the shapes.
    """
    count = min(steps_per_epoch(setup), STATISTICS_BATCHES)

    def statistics(params, stats, source, key):
        orders = make_orders(setup, key, 0)
        total = _sum_of_statistics(setup, params, stats, source, orders, key, 0, count)
        return jax.tree.map(lambda x: x / count, total)

    return statistics


def windows_statistics(setup: Setup) -> Callable:
    """Returns the function of :func:`make_statistics` for stored images; it ignores ``source``."""
    count = min(steps_per_epoch(setup), STATISTICS_BATCHES)
    orders = jax.jit(lambda key: make_orders(setup, key, 0))
    of_steps = jax.jit(functools.partial(_sum_of_statistics, setup))
    places = windows.orders_in_window(setup)

    def statistics(params, stats, source, key):
        rows = batching.rows_of_steps(np.asarray(orders(key)), setup.config.batch_size)[:count]
        next_window, total, done = windows.make_next_window(setup, rows, 0), None, 0
        while done < count:
            window = next_window(count)
            end = window.first + window.count
            own = of_steps(params, stats, window.source, places, key, window.first, end)
            total = own if total is None else jax.tree.map(jnp.add, total, own)
            done = end
        return jax.tree.map(lambda x: x / count, total)

    return statistics


def _sum_of_statistics(setup, params, stats, source, orders, key, first, end):
    """The sum of the statistics of the batches of some steps, each computed by itself."""

    def add(n, total):
        batch = batching.make_batch(
            setup.pipeline.example, source, orders, key, n, batch_size=setup.config.batch_size
        )
        mode = {"train": True, "momentum": 0.0}  # statistics of this batch alone
        *_, own = setup.loss(join(params, stats), *batch, 1.0, **mode)
        return jax.tree.map(jnp.add, total, own)

    return jax.lax.fori_loop(first, end, add, jax.tree.map(jnp.zeros_like, stats))


def choose(config: Config, earlier: Any, current: Any, rows: list[dict], validated: bool) -> Any:
    """Returns the variables that a run reports from now on, None for those of its state.

    Args:
      config: of the run.
      earlier: what it reported so far, or None.
      current: see :func:`make_current`.
      rows: of metrics.jsonl.
      validated: whether the last validation is that of ``current``.
    """
    if not config.ema and config.keep == "last":
        return None
    if config.keep == "best" and earlier is not None:
        if not validated or best_row(rows) is not validations(rows)[-1]:
            return earlier
    return jax.tree.map(jnp.copy, current)  # the next steps take over the memory of the state


def validations(rows: list[dict]) -> list[dict]:
    """Returns the rows of metrics.jsonl that are validations."""
    return [row for row in rows if "validation_error" in row]


def best_row(rows: list[dict]) -> dict:
    """Returns the first validation with the smallest error, among equal ones the smallest loss."""
    return min(validations(rows), key=lambda r: (r["validation_error"], r["validation_loss"]))


def out_of_patience(config: Config, rows: list[dict]) -> bool:
    """Returns whether ``--early_stopping`` validations in succession were no better than before."""
    found = validations(rows)
    if not config.early_stopping or not found:
        return False
    best = best_row(rows)
    return sum(row["step"] > best["step"] for row in found) >= config.early_stopping


def ended(setup: Setup, rows: list[dict], step: int) -> bool:
    """Returns whether the validation after this step, if there is one, says that training ends.

    It doesn't ask how validations are spaced, which a continued run may have changed.
    """
    found, config = validations(rows), setup.config
    if not found or found[-1]["step"] != step:
        return False
    return setup.task.should_stop(config, rows) or out_of_patience(config, rows)


def summary_fields(config: Config, rows: list[dict], step: int) -> dict:
    """Returns what summary.json says of the reported weights and of their validation."""
    found = validations(rows)
    row = (best_row(rows) if config.keep == "best" else found[-1]) if found else {}
    step = row["step"] if config.keep == "best" else step
    weights = f"averaged with decay {config.ema:g}" if config.ema else "as trained"
    chosen = "the last step"
    if config.keep == "best":
        chosen = f"the smallest validation error, then loss, of {len(found)} validations"
    fields = {
        "validation_error": row.get("validation_error"),
        "validation_loss": row.get("validation_loss"),
        "weights": f"{weights}, after step {step}: {chosen}",
        "weights_step": step,
        "stopped_early": out_of_patience(config, rows),
    }
    if (config.ema or config.keep == "best") and found:
        last = found[-1]
        fields["validation_error_last"] = last.get(
            "validation_error_last", last["validation_error"]
        )
    return fields
