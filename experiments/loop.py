"""The training loop that all programs share: train, validate, checkpoint, resume, report."""

import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from capsjax import train
from experiments import evaluation, images, io, preparation, probe, report, runtime, sampling
from experiments.config import Config
from experiments.errors import UserError
from experiments.preparation import Setup
from experiments.profiling import Profile
from experiments.progress import Display, Stop


def run(config: Config) -> dict:
    """Train, or continue, the run that a configuration describes; returns its summary.

    Raises:
      UserError: anything that the user can mend, before or without harm to the run.
    """
    started = time.monotonic()
    setup = preparation.prepare(config)
    total = preparation.total_steps(setup)
    if setup.config.routing == "frozen" and not io.has_checkpoints(setup.config):
        preparation.frozen_source(setup)  # before anything is written
    with io.open_workdir(setup.config) as workdir:
        print(preparation.banner(setup), file=sys.stderr)
        with io.Checkpoints(workdir) as checkpoints:
            state = resume(setup, checkpoints, workdir, total)
            describe(setup, workdir)
            with io.Metrics(workdir, int(state.step)) as metrics:
                evaluate = evaluation.evaluator(setup)
                profile = Profile(setup.config.profile, workdir)
                state, stopped = fit(setup, state, total, metrics, checkpoints, evaluate, profile)
        if stopped:
            print(f"stopped after step {state.step}; the same command continues", file=sys.stderr)
            sys.exit(128 + stopped)
        seconds = time.monotonic() - started
        return report.finish(setup, state, workdir, metrics.rows, evaluate, seconds)


def describe(setup: Setup, workdir: Path) -> None:
    """Write config.json and network.json."""
    io.write_config(setup.config, workdir)
    io.write_json(workdir / "network.json", images.facts(setup.dataset))


def resume(setup: Setup, checkpoints: io.Checkpoints, workdir: Path, total: int):
    """The state of the newest checkpoint, or the initial one.

    Raises:
      UserError: the run has already gone beyond ``total`` steps.
    """
    done = checkpoints.latest()
    state = preparation.initial_state(setup, couplings=done is None)
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
    return runtime.parallelize(
        functools.partial(chunk_body, setup), setup.config.parallel, setup.devices
    )


def chunk_body(setup: Setup, axis_name: str | None, parts: int, constrain: Callable) -> Callable:
    """Of :func:`make_chunk`, for :func:`experiments.runtime.parallelize` or ``jax.vmap``."""
    config = setup.config
    step = train.make_train_step(
        setup.loss, setup.optimizer, axis_name=axis_name, total_steps=preparation.total_steps(setup)
    )

    def body(state, source, orders, key, count, which):
        @jax.jit  # traced once, although the shapes of its results are asked for first
        def one(state):
            images, labels, dropout_key = sampling.batch(
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
    per_epoch = preparation.steps_per_epoch(setup)
    pause, span = preparation.steps_between_saves(setup), preparation.steps_of_orders(setup)
    step = int(state.step)
    chunk = make_chunk(setup)
    source, key = preparation.training_inputs(setup)
    measure = probe.make_probe(setup)
    held_out = setup.stream.held_out("validation")
    make_orders = jax.jit(sampling.epoch_orders, static_argnums=(2, 3))
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
