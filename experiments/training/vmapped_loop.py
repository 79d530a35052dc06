"""Runs that differ in their seeds and in numbers of the recipe alone, trained as one program.

Everything that a run changes has one more axis, S. On an accelerator one step is ``jax.vmap`` of
the step of the shared loop; on a CPU, whose cores one run fills, a call trains one run after
another. Batches, initial weights and updates are those of each run on its own, to rounding. Each
run keeps its own folder, with what a single run would leave there, and can be continued as such.
"""

import contextlib
import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from capsjax import train
from capsjax.recipes import margin_factor
from experiments.config import Config, UserError, names_of, resolve
from experiments.files import write_text
from experiments.tasks.base import Program, Setup, Task
from experiments.tasks.objective import make_objective
from experiments.training import chunks, initial_weights, loop, pieces, selection, windows
from experiments.training.banner import banner
from experiments.training.checkpoints import Checkpoints
from experiments.training.evaluate import make_evaluate
from experiments.training.first_step import before_first_step
from experiments.training.identity import record_of
from experiments.training.loop import Stepper, TrainingRun
from experiments.training.profiling import Profile
from experiments.training.progress import leave
from experiments.training.setup import (
    first_state,
    make_optimizer,
    make_orders,
    prepare,
    random_keys,
    total_steps,
)
from experiments.training.summary import write_summary
from experiments.training.workdir import open_workdir

ONE_BY_ONE = ("cpu",)  # platforms on which a step of several runs at once takes longer
MEMORY_SHARE = 0.8  # of the free memory of an accelerator that runs may take


def run(program: Program, configs: list[Config]) -> None:
    """Trains several runs, or as many of the first ones as the memory holds.

    A run whose loss is no longer finite gets an error.txt, and the others go on. The first run
    is trained on its own where the runs were stopped at different steps, where training may end
    early, and where images are read in training.

    Args:
      program: the command whose runs they are.
      configs: differ in ``seed``, ``workdir`` and flags that are ``numeric`` only.

    Raises:
      UserError: see :func:`experiments.training.loop.run`.
    """
    started = time.monotonic()
    setup = prepare(program, dataclasses.replace(configs[0], num_devices=1, capsule_shards=1))
    selection.check(setup)
    initial_weights.check(setup)
    setup = pieces.choose(setup, chunks.chunk_body)  # the memory of a run decides how many fit
    configs = [
        dataclasses.replace(resolve(config, setup.dataset.name), input_norm=setup.config.input_norm)
        for config in configs
    ]
    configs = configs[: capacity(setup, configs)]
    with contextlib.ExitStack() as folders:
        workdirs = [
            folders.enter_context(open_workdir(config, record_of(setup._replace(config=config))))
            for config in configs
        ]
        with contextlib.ExitStack() as files:
            checkpoints = [files.enter_context(Checkpoints(workdir)) for workdir in workdirs]
            same_step = len({one.latest() for one in checkpoints}) == 1
            ends = setup.task.should_stop is not Task.should_stop or setup.config.early_stopping
            alone = ends or windows.is_stored(setup)  # each run would read other batches
            together = len(configs) > 1 and same_step and not alone
            if together:
                state, reported = _restore(setup, configs, checkpoints)
                step = int(state.step[0])
                runs = {
                    n: loop.start(setup._replace(config=config), *own, step, files, reported[n])
                    for n, (config, *own) in enumerate(zip(configs, workdirs, checkpoints))
                }
                print(f"{banner(setup)} | {len(configs)} runs together", file=sys.stderr)
                setup = before_first_step(setup, chunks.chunk_body, len(configs))
                stepper = make_stepper(setup, configs)
                isolate = functools.partial(_isolate, runs)
                profile = Profile(0, workdirs[0])
                state, stopped = loop.fit(setup, runs, stepper, state, step, profile, isolate)
        if not together:
            folders.close()
            loop.run(program, configs[0])
            return
        if stopped:
            leave([one.setup for one in runs.values()], "stopped", stopped)
        for n, one in list(runs.items()):
            with isolate(n):
                write_summary(
                    one.setup,
                    stepper.select(state, n),
                    one.workdir,
                    one.metrics.rows,
                    functools.partial(stepper.evaluate, n),
                    time.monotonic() - started,
                    together=len(configs),
                    reported=one.reported,
                )


@contextlib.contextmanager
def _isolate(runs: dict[int, TrainingRun], n: int):
    """Ends run n where it fails, and leaves the others going."""
    try:
        yield
    except UserError as error:
        write_text(runs.pop(n).workdir / "error.txt", f"error: {error}\n")


def make_stepper(setup: Setup, configs: list[Config]) -> Stepper:
    """Returns how several runs advance in step with each other."""
    chunk, source = make_chunk(setup), jax.device_put(setup.pipeline.source)
    keys = jnp.stack([random_keys(config)[1] for config in configs])
    numbers, evaluate = numbers_of(setup, configs), _make_evaluate(setup)
    make_orders = jax.jit(functools.partial(orders, setup))
    return Stepper(
        advance=lambda state, order, count: chunk(numbers, state, source, order, keys, count),
        make_orders=lambda block: make_orders(keys, block),
        select=_select,
        evaluate=lambda n, own, *examples: evaluate((_select(numbers, n), own), *examples),
    )


def _select(tree: Any, n: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[n], tree)


def numbers_of(setup: Setup, configs: list[Config]) -> dict[str, jax.Array]:
    """Returns the numeric flags of several runs, each ``[S]``."""
    classes = setup.dataset.num_classes
    numbers = {
        name: [getattr(c, name) for c in configs] for name in names_of(configs[0], "numeric")
    }
    weights = [margin_factor(w, classes=classes) for w in numbers["margin_weight"]]
    numbers |= {"margin_weight": weights}
    return {name: jnp.asarray(values) for name, values in numbers.items()}


def with_numbers(setup: Setup, numbers: dict[str, jax.Array]) -> Setup:
    """Returns a setup whose losses and optimizer are built from numbers that may be traced."""
    config = dataclasses.replace(setup.config, **numbers)
    _, loss, measure = make_objective(setup.task, config, setup.model_config, setup.dataset)
    optimizer = make_optimizer(config, total_steps(setup))
    return setup._replace(config=config, loss=loss, measure=measure, optimizer=optimizer)


def make_chunk(setup: Setup) -> Callable:
    """Returns :func:`make_body`, compiled; it takes over the memory of ``state``."""
    return jax.jit(make_body(setup), donate_argnums=1)


def make_body(setup: Setup) -> Callable:
    """Returns the chunk of several runs, ``body(numbers, state, source, order, key, count)``.

    As the chunk of :func:`experiments.training.chunks.make_chunk`; ``numbers``, ``state``,
    ``order``, ``key`` and the sums have a first axis S.
    """

    def one(numbers, state, source, order, key, count):
        own = with_numbers(setup, numbers)
        body = chunks.chunk_body(own, axis_name=None, parts=1, constrain=lambda batch: batch)
        return body(state, source, order, key, count, 0)

    def one_by_one(numbers, state, source, order, key, count):
        def own(run):
            numbers, state, order, key = run
            return one(numbers, state, source, order, key, count)

        return jax.lax.map(own, (numbers, state, order, key))

    if setup.devices[0].platform in ONE_BY_ONE:
        return one_by_one
    return jax.vmap(one, in_axes=(0, 0, None, 0, 0, None))


def _make_evaluate(setup: Setup) -> Callable:
    """``evaluate((numbers, variables), images, labels)`` of one run, one program for all runs."""

    def measure(numbers_and_variables, *batch):
        numbers, variables = numbers_and_variables
        return with_numbers(setup, numbers).measure(variables, *batch)

    return make_evaluate(setup._replace(measure=measure))


def capacity(setup: Setup, configs: list[Config]) -> int:
    """Returns how many runs the memory of an accelerator holds, at least one; on CPU all.

    The compiler is asked for the memory of one run.
    """
    stats = setup.devices[0].memory_stats()
    if not stats:
        return len(configs)
    one = jax.eval_shape(lambda: inputs(setup, configs[:1]))
    memory = make_chunk(setup).lower(*one).compile().memory_analysis()
    needed = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    free = stats["bytes_limit"] - stats["bytes_in_use"]
    return max(1, min(len(configs), int(MEMORY_SHARE * free // needed)))


def inputs(setup: Setup, configs: list[Config], count: int = 1) -> tuple:
    """Returns the arguments of the first chunk of several runs."""
    first, later = (jnp.stack(keys) for keys in zip(*(random_keys(c) for c in configs)))
    state = jax.vmap(functools.partial(first_state, setup))(first)
    order = orders(setup, later, 0)
    return numbers_of(setup, configs), state, setup.pipeline.source, order, later, count


def orders(setup: Setup, keys: jax.Array, block: int) -> jax.Array:
    """Returns the orders in which each run sees a block of epochs, ``[S, E, N]``."""
    return jax.vmap(lambda key: make_orders(setup, key, block))(keys)


def _restore(
    setup: Setup, configs: list[Config], checkpoints: list[Checkpoints]
) -> tuple[train.TrainState, list]:
    """The states of all runs, as last saved or at the beginning, and what each reports."""
    states = jax.jit(lambda: inputs(setup, configs)[1])()
    if checkpoints[0].latest() is None:
        if setup.config.init_from:
            parts = [_select(states, n) for n in range(len(configs))]
            parts = [initial_weights.load(setup, one, report=not n) for n, one in enumerate(parts)]
            states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
        return states, [None] * len(configs)
    saved = [one.restore_all(_select(states, n)) for n, one in enumerate(checkpoints)]
    restored, reported = zip(*saved)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *restored), list(reported)
