"""Runs that differ in their seeds and in numbers of the recipe alone, trained as one program.

Everything that a run changes has an axis S more. On an accelerator one step is ``jax.vmap`` of the
step of the shared loop; on a CPU, whose cores one run fills, a call trains one run after another.
Batches, initial weights and updates are those of each run alone, to rounding. Each keeps its own
folder, with what a run of its own would leave there, and can be continued as such.
"""

import contextlib
import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from capsjax import train
from experiments.config import Config, UserError
from experiments.data import batching
from experiments.tasks.base import Setup, Task
from experiments.training import loop
from experiments.training.checkpoints import Checkpoints
from experiments.training.evaluate import evaluator
from experiments.training.metrics import Metrics
from experiments.training.progress import Display, Stop
from experiments.training.setup import (
    banner,
    make_optimizer,
    prepare,
    random_keys,
    steps_between_saves,
    steps_of_orders,
    steps_per_epoch,
    total_steps,
)
from experiments.training.summary import write_summary
from experiments.training.workdir import open_workdir

# Numbers of which a step is a function, so that runs with other values share one program.
NUMBERS = (
    "learning_rate",
    "decay_rate",
    "decay_steps",
    "learning_rate_floor",
    "margin_weight",
    "reconstruction_weight",
)
ONE_BY_ONE = ("cpu",)  # platforms on which a step of several runs at once takes longer
SHARE = 0.8  # of the free memory of an accelerator that runs may take


class Member(NamedTuple):
    """One of the runs."""

    setup: Setup
    workdir: Path
    checkpoints: Checkpoints
    metrics: Metrics
    display: Display


def run(configs: list[Config]) -> None:
    """Train several runs, or as many of the first as the memory holds.

    Args:
      configs: differ in ``seed``, ``workdir`` and :data:`experiments.training.vmapped_loop.NUMBERS` only.

    One whose loss is no longer finite gets an error.txt, and the others go on. The first is trained
    alone where they were stopped at different steps, and where training may end before its time.

    Raises:
      UserError: see :func:`experiments.training.loop.run`.
    """
    started = time.monotonic()
    setup = prepare(dataclasses.replace(configs[0], num_devices=1))
    configs = [config.resolved(setup.dataset.name) for config in configs]
    configs = configs[: capacity(setup, configs)]
    with contextlib.ExitStack() as folders:
        workdirs = [folders.enter_context(open_workdir(config)) for config in configs]
        with contextlib.ExitStack() as files:
            keepers = [files.enter_context(Checkpoints(workdir)) for workdir in workdirs]
            together = len(configs) > 1 and len({keeper.latest() for keeper in keepers}) == 1
            together = together and setup.task.enough is Task.enough
            if together:
                state = _states(setup, configs, keepers)
                members = _open(setup, configs, workdirs, keepers, int(state.step[0]), files)
                together = f"{len(configs)} runs together"
                print(f"{banner(setup)} | {together}", file=sys.stderr)
                numbers, evaluate = numbers_of(configs), make_evaluate(setup)
                state, stopped = _fit(setup, members, numbers, state, evaluate)
        if together and stopped:
            print("stopped; the same command continues", file=sys.stderr)
            sys.exit(128 + stopped)
        for n, member in members.items() if together else ():
            write_summary(
                member.setup,
                _pick(state, n),
                member.workdir,
                member.metrics.rows,
                functools.partial(_evaluate_one, evaluate, _pick(numbers, n)),
                time.monotonic() - started,
                together=len(configs),
            )
    if not together:
        loop.run(configs[0])


def _open(setup, configs, workdirs, keepers, step, files) -> dict[int, Member]:
    """All runs by number."""
    total, per_epoch = total_steps(setup), steps_per_epoch(setup)
    members = {}
    for n, (config, workdir, keeper) in enumerate(zip(configs, workdirs, keepers)):
        own = setup._replace(config=config)
        loop.describe(own, workdir)
        metrics = files.enter_context(Metrics(workdir, step))
        display = files.enter_context(Display(config, metrics, step, total, per_epoch))
        members[n] = Member(own, workdir, keeper, metrics, display)
    return members


def numbers_of(configs: list[Config]) -> dict[str, jax.Array]:
    """:data:`experiments.training.vmapped_loop.NUMBERS` of some runs, each ``[S]``."""
    return {name: jnp.asarray([getattr(c, name) for c in configs]) for name in NUMBERS}


def with_numbers(setup: Setup, numbers: dict[str, jax.Array]) -> Setup:
    """A setup whose losses and optimiser are built from numbers that may be traced."""
    config = dataclasses.replace(setup.config, **numbers)
    _, loss, measure = setup.task.objective(config, setup.model_config)
    optimizer = make_optimizer(config)
    return setup._replace(config=config, loss=loss, measure=measure, optimizer=optimizer)


def make_chunk(setup: Setup) -> Callable:
    """:func:`make_body`, compiled; takes over the memory of ``state``."""
    return jax.jit(make_body(setup), donate_argnums=1)


def make_body(setup: Setup) -> Callable:
    """``body(numbers, state, source, order, key, count)`` of :func:`experiments.training.loop.make_chunk`.

    ``numbers``, ``state``, ``order``, ``key`` and the sums have a first axis S.
    """

    def one(numbers, state, source, order, key, count):
        own = with_numbers(setup, numbers)
        body = loop.chunk_body(own, axis_name=None, parts=1, constrain=lambda batch: batch)
        return body(state, source, order, key, count, 0)

    def one_by_one(numbers, state, source, order, key, count):
        def own(run):
            numbers, state, order, key = run
            return one(numbers, state, source, order, key, count)

        return jax.lax.map(own, (numbers, state, order, key))

    if setup.devices[0].platform in ONE_BY_ONE:
        return one_by_one
    return jax.vmap(one, in_axes=(0, 0, None, 0, 0, None))


def make_evaluate(setup: Setup) -> Callable:
    """``evaluate((numbers, params), images, labels)`` of :func:`experiments.training.evaluate.evaluator`.

    Of one run at a time, all by one compiled program.
    """

    def measure(numbers_and_params, *batch):
        numbers, params = numbers_and_params
        return with_numbers(setup, numbers).measure(params, *batch)

    return evaluator(setup._replace(measure=measure))


def capacity(setup: Setup, configs: list[Config]) -> int:
    """How many runs the memory of an accelerator holds, at least one; on CPU all.

    The compiler is asked for the memory of one.
    """
    stats = setup.devices[0].memory_stats()
    if not stats:
        return len(configs)
    one = jax.eval_shape(lambda: inputs(setup, configs[:1]))
    memory = make_chunk(setup).lower(*one).compile().memory_analysis()
    needed = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    free = stats["bytes_limit"] - stats["bytes_in_use"]
    return max(1, min(len(configs), int(SHARE * free // needed)))


def inputs(setup: Setup, configs: list[Config], count: int = 1) -> tuple:
    """Arguments of the first chunk of some runs."""
    first, later = (jnp.stack(keys) for keys in zip(*(random_keys(c) for c in configs)))
    state = jax.vmap(lambda key: train.init_state(setup.model, setup.optimizer, key))(first)
    order = orders(setup, later, 0)
    return numbers_of(configs), state, setup.stream.source, order, later, count


def orders(setup: Setup, keys: jax.Array, block: int) -> jax.Array:
    """In which orders each run sees the examples of a block of epochs, ``[S, E, N]``."""
    size = len(setup.dataset.train_labels)
    epochs = steps_of_orders(setup) // steps_per_epoch(setup)
    return jax.vmap(lambda key: batching.epoch_orders(key, block, size, epochs))(keys)


def _pick(tree: Any, n: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[n], tree)


def _states(setup, configs, keepers) -> train.TrainState:
    """States of all runs, as they were last saved or at the beginning."""
    states = jax.jit(lambda: inputs(setup, configs)[1])()
    if keepers[0].latest() is None:
        return states
    restored = [keeper.restore(_pick(states, n)) for n, keeper in enumerate(keepers)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *restored)


def _evaluate_one(evaluate, numbers, params, *examples):
    return evaluate((numbers, params), *examples)


@contextlib.contextmanager
def _failing_alone(members: dict[int, Member], n: int):
    """What fails one run ends it, and leaves the others going."""
    try:
        yield
    except UserError as error:
        (members.pop(n).workdir / "error.txt").write_text(f"error: {error}\n")


def _fit(setup, members: dict[int, Member], numbers, state, evaluate):
    """As :func:`experiments.training.loop.fit`; returns the states, and a signal's number or 0."""
    total, span = total_steps(setup), steps_of_orders(setup)
    pause = steps_between_saves(setup)
    step, order, log_every = int(state.step[0]), None, setup.config.log_every
    chunk, source = make_chunk(setup), jax.device_put(setup.stream.source)
    keys = jnp.stack([random_keys(member.setup.config)[1] for member in members.values()])
    held_out = setup.stream.held_out("validation")
    make_orders = jax.jit(functools.partial(orders, setup))
    with Stop() as stop:
        while step < total and members and not stop.requested:
            block, within = divmod(step, span)
            if order is None or within == 0:
                order = make_orders(keys, block)
            to_log, to_pause = log_every - step % log_every, pause - step % pause
            count = min(to_log, to_pause, span - within, total - step)
            state, sums = chunk(numbers, state, source, order, keys, count)
            step += count
            due = step % pause == 0 or step == total
            for n, member in list(members.items()):
                with _failing_alone(members, n):
                    member.display.trained(step, count, _pick(sums, n))
                    if not (due or stop.requested):
                        continue
                    member.display.flush()
                    own = _pick(state, n)
                    if due and len(held_out[1]):
                        values = evaluate((_pick(numbers, n), own.params), *held_out)
                        member.display.validated(step, values)
                    member.metrics.sync()
                    member.checkpoints.save(own, step)
    return state, stop.requested if step < total else 0
