"""The training loop that all programs share: train, validate, checkpoint, resume, report."""

import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from capsjax import train
from experiments.config import Config, UserError
from experiments.data import batching, image_files
from experiments.tasks import routing_diagnostics
from experiments.tasks.base import Setup
from experiments.training.checkpoints import Checkpoints, has_checkpoints
from experiments.training.devices import parallelize
from experiments.training.evaluate import evaluator
from experiments.training.metrics import Metrics
from experiments.training.profiling import Profile
from experiments.training.progress import Display, Stop
from experiments.training.setup import (
    banner,
    frozen_source,
    initial_state,
    prepare,
    steps_between_saves,
    steps_of_orders,
    steps_per_epoch,
    total_steps,
    training_inputs,
)
from experiments.training.summary import write_summary
from experiments.training.workdir import open_workdir, write_config, write_json


def run(config: Config) -> dict:
    """Train, or continue, the run that a configuration describes; returns its summary.

    Raises:
      UserError: anything that the user can mend, before or without harm to the run.
    """
    started = time.monotonic()
    setup = prepare(config)
    total = total_steps(setup)
    if setup.config.routing == "frozen" and not has_checkpoints(setup.config):
        frozen_source(setup)  # before anything is written
    with open_workdir(setup.config) as workdir:
        print(banner(setup), file=sys.stderr)
        with Checkpoints(workdir) as checkpoints:
            state = resume(setup, checkpoints, workdir, total)
            describe(setup, workdir)
            with Metrics(workdir, int(state.step)) as metrics:
                evaluate = evaluator(setup)
                profile = Profile(setup.config.profile, workdir)
                state, stopped = fit(setup, state, total, metrics, checkpoints, evaluate, profile)
        if stopped:
            print(f"stopped after step {state.step}; the same command continues", file=sys.stderr)
            sys.exit(128 + stopped)
        seconds = time.monotonic() - started
        return write_summary(setup, state, workdir, metrics.rows, evaluate, seconds)


def describe(setup: Setup, workdir: Path) -> None:
    """Write config.json and network.json."""
    write_config(setup.config, workdir)
    write_json(workdir / "network.json", image_files.facts(setup.dataset))


def resume(setup: Setup, checkpoints: Checkpoints, workdir: Path, total: int):
    """The state of the newest checkpoint, or the initial one.

    Raises:
      UserError: the run has already gone beyond ``total`` steps.
    """
    done = checkpoints.latest()
    state = initial_state(setup, couplings=done is None)
    if done is None:
        return state
    if done > total:
        raise UserError(
            f"{workdir} has already done {done} steps and {total} are asked for; "
            "raise --epochs or --steps, or choose another --workdir"
        )
    print(f"continuing {workdir} after step {done}", file=sys.stderr)
    return checkpoints.restore(state)


def make_chunk(setup: Setup) -> Callable:
    """Many steps in one call: ``chunk(state, source, orders, key, count)``.

    Returns the state after ``count`` steps (a traced number, so that one compiled program
    serves chunks of any length up to ``log_every``) and the sums of the metrics.
    """
    return parallelize(functools.partial(chunk_body, setup), setup.config.parallel, setup.devices)


def chunk_body(setup: Setup, axis_name: str | None, parts: int, constrain: Callable) -> Callable:
    """Of :func:`make_chunk`, for :func:`experiments.training.devices.parallelize` or ``jax.vmap``."""
    config = setup.config
    step = train.make_train_step(
        setup.loss, setup.optimizer, axis_name=axis_name, total_steps=total_steps(setup)
    )

    def body(state, source, orders, key, count, which):
        @jax.jit  # traced once, although the shapes of its results are asked for first
        def one(state):
            images, labels, dropout_key = batching.batch(
                setup.stream.example,
                source,
                orders,
                key,
                state.step,
                batch_size=config.batch_size,
                part=(which, parts),
            )
            return step(state, *constrain((images, labels)), dropout_key)

        sums = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(one, state)[1])

        def several(_, carry):
            state, sums = carry
            state, metrics = one(state)
            return state, jax.tree.map(jnp.add, sums, metrics)

        return jax.lax.fori_loop(0, count, several, (state, sums))

    return body


def fit(
    setup, state, total, metrics, checkpoints, evaluate, profile
) -> tuple[train.TrainState, int]:
    """Train up to step ``total``, writing metrics and checkpoints as it goes.

    Returns:
      The state, and 0 or the number of the signal that stopped training before the end.
    """
    config, dataset = setup.config, setup.dataset
    per_epoch = steps_per_epoch(setup)
    pause, span = steps_between_saves(setup), steps_of_orders(setup)
    step = int(state.step)
    chunk = make_chunk(setup)
    source, key = training_inputs(setup)
    measure = routing_diagnostics.make_probe(setup)
    held_out = setup.stream.held_out("validation")
    make_orders = jax.jit(batching.epoch_orders, static_argnums=(2, 3))
    orders = None

    def enough():
        return step % pause == 0 and setup.task.enough(config, metrics.rows)

    with Display(config, metrics, step, total, per_epoch) as display, Stop() as stop:
        while step < total and not stop.requested and not enough():
            block, within = divmod(step, span)
            if orders is None or within == 0:
                orders = make_orders(key, block, len(dataset.train_labels), span // per_epoch)
            to_log = config.log_every - step % config.log_every
            most = min(span - within, pause - step % pause, total - step)
            count = profile.count(min(to_log, most), most)
            state, sums = profile.run(chunk, state, source, orders, key, count)
            step += count
            display.trained(step, count, sums)
            due = step % pause == 0 or step == total
            if due or stop.requested:
                display.flush()
                if due and len(held_out[1]):
                    display.validated(step, evaluate(state.params, *held_out))
                if due and measure:
                    display.measured(step, measure(state.params))
                metrics.sync()
                checkpoints.save(state, step)
    return state, stop.requested if step < total and not enough() else 0
