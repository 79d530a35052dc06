"""The training loop that all commands share: train, validate, checkpoint, resume, report."""

import contextlib
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from capsjax import train
from experiments.config import Config, UserError
from experiments.data import datasets
from experiments.files import write_json, write_text
from experiments.plots.text_tables import comma_separated
from experiments.tasks import routing_diagnostics
from experiments.tasks.base import Program, Setup
from experiments.training import (
    agreement,
    frozen_couplings,
    guard,
    initial_weights,
    processes,
    selection,
    shards,
    shared_files,
    windows,
)
from experiments.training.banner import banner
from experiments.training.checkpoints import Checkpoints, has_checkpoints
from experiments.training.chunks import chunk_body, make_chunk
from experiments.training.evaluate import make_evaluate
from experiments.training.first_step import before_first_step
from experiments.training.identity import record_of
from experiments.training.metrics import Metrics
from experiments.training.profiling import Profile
from experiments.training.progress import Display, Stop, diverged, leave
from experiments.training.setup import (
    initial_state,
    make_orders,
    prepare,
    steps_between_saves,
    steps_per_block,
    steps_per_epoch,
    total_steps,
    training_inputs,
)
from experiments.training.summary import write_summary
from experiments.training.workdir import open_workdir, write_config


class TrainingRun(NamedTuple):
    """A run in progress: its configuration and what it writes."""

    setup: Setup
    workdir: Path
    checkpoints: Checkpoints
    metrics: Metrics
    display: Display
    reported: Any = None  # the variables that it reports, if not those of its state


class Stepper(NamedTuple):
    """How one run, or several in step with each other, advance."""

    advance: Callable  # (state, orders, count) -> (state, sums of metrics)
    make_orders: Callable  # (number of a block of epochs) -> orders
    select: Callable  # (tree, n) -> the part that belongs to run n
    evaluate: Callable  # (n, variables, images, labels) -> metrics [N]


def run(program: Program, config: Config) -> dict:
    """Trains, or continues, the run that a configuration describes, and returns its summary.

    Raises:
      UserError: a problem that the user can fix; an existing run is left intact.
    """
    with processes.together(config):
        return _run(program, config)


def _run(program: Program, config: Config) -> dict:
    started = time.monotonic()
    setup = prepare(program, config)
    total_steps(setup)  # too many are refused before anything is written
    if setup.config.routing == "frozen" and not has_checkpoints(setup.config):
        frozen_couplings.find_source(setup)  # before anything is written
    if processes.is_first():
        initial_weights.check(setup)
    selection.check(setup)
    shards.check(setup)
    agreement.check(setup)
    windows.check(setup)
    with open_workdir(setup.config, record_of(setup)) as workdir:
        processes.say(banner(setup))
        setup = before_first_step(setup, chunk_body)
        evaluate = make_evaluate(setup)
        with contextlib.ExitStack() as files:
            checkpoints = files.enter_context(shared_files.open_checkpoints(workdir))
            state, reported = resume(setup, checkpoints, workdir)
            runs = {0: start(setup, workdir, checkpoints, int(state.step), files, reported)}
            profile, done = Profile(setup.config.profile, workdir), int(state.step)
            stepper = make_stepper(setup, evaluate, done)
            state, stopped = fit(setup, runs, stepper, state, done, profile)
        if stopped:
            leave([setup], f"stopped after step {state.step}", stopped)
        seconds = time.monotonic() - started
        rows, reported = runs[0].metrics.rows, runs[0].reported
        trained = int(state.step) > done
        return write_summary(setup, state, workdir, rows, evaluate, seconds, 1, reported, trained)


def resume(setup: Setup, checkpoints: Checkpoints, workdir: Path) -> tuple[train.TrainState, Any]:
    """Returns the newest checkpoint, or the initial state; see ``Checkpoints.restore_all``.

    Raises:
      UserError: the run has already gone beyond its last step.
    """
    done, total = checkpoints.latest(), total_steps(setup)
    state = initial_state(setup, sources=done is None)
    if done is None:
        return state, None
    if done > total:
        raise UserError(
            f"{workdir} has already done {done} steps and {total} are asked for; "
            "raise --epochs or --steps, or choose another --workdir"
        )
    processes.say(f"continuing {workdir} after step {done}")
    return checkpoints.restore_all(state)


def start(
    setup: Setup,
    workdir: Path,
    checkpoints: Checkpoints,
    step: int,
    files: contextlib.ExitStack,
    reported: Any = None,
) -> TrainingRun:
    """Writes config.json and network.json, and opens what a run writes from a step on."""
    if processes.is_first():
        write_config(setup.config, workdir, record_of(setup))
        write_json(workdir / "network.json", datasets.dataset_facts(setup.dataset))
        if setup.dataset.skipped:
            table = comma_separated(["file", "reason"], setup.dataset.skipped)
            write_text(workdir / "unreadable_files.csv", table)
    metrics = files.enter_context(shared_files.open_metrics(workdir, step, checkpoints.rows()))
    total, per_epoch = total_steps(setup), steps_per_epoch(setup)
    display = files.enter_context(Display(setup.config, metrics, step, total, per_epoch))
    return TrainingRun(setup, workdir, checkpoints, metrics, display, reported)


def make_stepper(setup: Setup, evaluate: Callable, step: int) -> Stepper:
    """Returns how a single run advances on its devices, from a step on."""
    chunk, (source, key) = make_chunk(setup), training_inputs(setup)
    orders = jax.jit(functools.partial(make_orders, setup))
    stepper = Stepper(
        advance=lambda state, orders, count: chunk(state, source, orders, key, count),
        make_orders=lambda block: orders(key, block),
        select=lambda tree, n: tree,
        evaluate=lambda n, *examples: evaluate(*examples),
    )
    if windows.is_stored(setup):
        advance, start_block = windows.make_advance(setup, chunk, key, stepper.make_orders, step)
        stepper = stepper._replace(advance=advance, make_orders=start_block)
    return stepper


@jax.jit
def _finite(params):
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(params)]).all()


def fit(
    setup: Setup,
    runs: dict[int, TrainingRun],
    stepper: Stepper,
    state: Any,
    step: int,
    profile: Profile,
    isolate: Callable = lambda n: contextlib.nullcontext(),
) -> tuple[Any, int]:
    """Trains one run, or several in step with each other, to the last step.

    Args:
      setup: of one of the runs, which agree in everything that is read here.
      runs: by number; runs that ``isolate`` removes continue to be trained but are not recorded.
      stepper: how the runs advance.
      state: of all runs, after ``step`` steps.
      profile: traces some of the steps.
      isolate: ``isolate(n)`` is the context in which run n is recorded.

    Returns:
      The state, and 0 or what stopped training before the end: a signal, or TIME_IS_UP.
    """
    log_every, total = setup.config.log_every, total_steps(setup)
    save_every, block_steps = steps_between_saves(setup), steps_per_block(setup)
    diagnose, inspect = routing_diagnostics.make_probe(setup), guard.make_inspect(setup)
    held_out, orders = setup.pipeline.held_out("validation"), None
    current = selection.make_current(setup)

    def finished_early():
        return all(selection.ended(r.setup, r.metrics.rows, step) for r in runs.values())

    def record(n: int, run: TrainingRun, count: int, sums: Any) -> None:
        run.display.trained(step, count, stepper.select(sums, n))
        due = step % save_every == 0 or step == total
        if not (due or stop.requested):
            return
        run.display.flush()
        own, config = stepper.select(state, n), run.setup.config
        if not _finite(own.params):
            raise UserError(diverged(f"the weights are not finite after step {step}"))
        variables = current(config, own)
        validated = due and len(held_out[1]) > 0
        if validated:
            which = [variables, own.variables] if config.ema else [variables]
            run.display.validated(step, *(stepper.evaluate(n, v, *held_out) for v in which))
        if due:
            inspect(step, own.variables, run.display, run.metrics.rows)
        if due and diagnose:
            run.display.measured(step, diagnose(own.variables))
        chosen = selection.choose(config, run.reported, variables, run.metrics.rows, validated)
        runs[n] = run._replace(reported=chosen)
        run.checkpoints.save(own, step, run.metrics.sync(), chosen)

    for n, run in runs.items() if step == 0 else ():
        inspect(step, stepper.select(state, n).variables, run.display, run.metrics.rows)
    agree = agreement.make_agreement(setup.devices)
    with Stop(setup.config.max_minutes, agree) as stop:
        while runs and step < total and not stop.requested and not finished_early():
            block, within = divmod(step, block_steps)
            if orders is None or within == 0:
                orders = stepper.make_orders(block)
            most = min(block_steps - within, save_every - step % save_every, total - step)
            count = profile.count(min(log_every - step % log_every, most), most)
            state, sums = profile.run(stepper.advance, state, orders, count)
            step += count
            stop.look_at_clock()
            for n, run in list(runs.items()):
                with isolate(n):
                    record(n, run, count, sums)
    return state, stop.requested if step < total and not finished_early() else 0
