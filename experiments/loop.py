"""The training loop that all programs share: train, validate, checkpoint, resume, report."""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from capsjax import functional, train
from capsjax.models import CapsNetConfig
from capsjax.models import Config as ModelConfig
from capsjax.routing import Sweeps, by_sweeps
from experiments import data, frozen, images, io, probe, programs, report, runtime, sampling
from experiments.config import Config
from experiments.errors import UserError
from experiments.profiling import Profile
from experiments.progress import Display, Stop
from experiments.subset import limit
from experiments.task import Stream, Task
from kernels.api import select

EVALUATION_BATCH = 128
EVALUATION_BATCHES = 8  # in one call, which fetches its scratch memory once


class Setup(NamedTuple):
    """What follows from a configuration before anything is trained."""

    config: Config  # resolved
    task: Task
    dataset: data.Dataset
    stream: Stream
    devices: list
    model_config: ModelConfig
    model: functional.Model
    loss: train.LossFn
    measure: train.LossFn
    optimizer: object
    parameters: int


def run(config: Config) -> dict:
    """Train, or continue, the run that a configuration describes; returns its summary.

    Raises:
      UserError: anything that the user can mend, before or without harm to the run.
    """
    started = time.monotonic()
    setup = prepare(config)
    total = total_steps(setup)
    if setup.config.routing == "frozen" and not io.has_checkpoints(setup.config):
        frozen_source(setup)  # before anything is written
    with io.open_workdir(setup.config) as workdir:
        print(banner(setup), file=sys.stderr)
        with io.Checkpoints(workdir) as checkpoints:
            state = resume(setup, checkpoints, workdir, total)
            describe(setup, workdir)
            with io.Metrics(workdir, int(state.step)) as metrics:
                evaluate = evaluator(setup)
                profile = Profile(setup.config.profile, workdir)
                state, stopped = fit(setup, state, total, metrics, checkpoints, evaluate, profile)
        if stopped:
            print(f"stopped after step {state.step}; the same command continues", file=sys.stderr)
            sys.exit(128 + stopped)
        seconds = time.monotonic() - started
        return report.finish(setup, state, workdir, metrics.rows, evaluate, seconds)


def prepare(config: Config, dataset: data.Dataset | None = None) -> Setup:
    """Devices, data, network, loss and optimiser of a configuration.

    Args:
      config: as the flags give it. dataset: in place of the one that it names.
    """
    runtime.keep_compiled_programs(config.cache_dir)
    devices = runtime.devices(config.accelerator, config.num_devices)
    dataset = dataset or limit(
        data.load(
            config.dataset,
            data_dir=config.data_dir or None,
            cache_dir=runtime.cache_folder(config.cache_dir),
            validation_fraction=config.validation_fraction,
        ),
        config.train_examples,
    )
    config = config.resolved(dataset.name)
    task = programs.find(config.program).task
    stream = task.stream(config, dataset)
    if config.batch_size % len(devices):
        raise UserError(
            f"--batch_size={config.batch_size} can't be divided among {len(devices)} devices"
        )
    divided = config.parallel == "jit" and len(devices) > 1
    try:
        implementation = select(config.routing_implementation, devices, divided=divided)
    except ValueError as error:
        name = config.routing_implementation
        raise UserError(f"--routing_implementation={name}: {error}") from error
    model_config = config.model_config(stream.shape, dataset.num_classes, implementation)
    if isinstance(implementation, Sweeps) and not has_sweeps(model_config):
        if config.routing_implementation != "auto":
            raise UserError(
                f"--routing_implementation={config.routing_implementation}: {config.routing} "
                "routing with these votes has no kernels, use stream"
            )
        model_config = dataclasses.replace(model_config, routing_implementation="auto")
    model, loss, measure = task.objective(config, model_config)
    optimizer = make_optimizer(config)
    parameters = functional.count_parameters(jax.eval_shape(model.init, jax.random.key(0)))
    network = (model_config, model, loss, measure, optimizer, parameters)
    return Setup(config, task, dataset, stream, devices, *network)


def describe(setup: Setup, workdir: Path) -> None:
    """Write config.json and network.json."""
    io.write_config(setup.config, workdir)
    io.write_json(workdir / "network.json", images.facts(setup.dataset))


def has_sweeps(config: ModelConfig) -> bool:
    """Whether kernels can compute all routed layers of a network."""
    if not isinstance(config, CapsNetConfig):
        return False
    votes = {config.votes, *([config.layer_votes] if config.capsule_layers else [])}
    return all(by_sweeps(config.make_routing(), kind) for kind in votes)


def steps_per_epoch(setup: Setup) -> int:
    return sampling.steps_per_epoch(len(setup.dataset.train_labels), setup.config.batch_size)


def steps_between_saves(setup: Setup) -> int:
    """An epoch; several of few examples, too short to evaluate and save after each."""
    per_epoch = steps_per_epoch(setup)
    return -(-setup.config.log_every // per_epoch) * per_epoch


def total_steps(setup: Setup) -> int:
    return setup.config.steps or setup.config.epochs * steps_per_epoch(setup)


def banner(setup: Setup) -> str:
    """Device, versions, network and data in one line."""
    c, d = setup.config, setup.dataset
    device = setup.devices[0]
    return (
        f"capsjax {c.program} | {len(setup.devices)} x {device.device_kind} ({device.platform}), "
        f"JAX {jax.__version__}, Flax {flax.__version__} | {about(setup)} "
        f"{setup.parameters:,} parameters, recipe {c.recipe} | "
        f"{d.name}: {len(d.train_labels):,} training, {len(d.validation_labels):,} validation, "
        f"{len(d.test_labels):,} test images"
    )


def about(setup: Setup) -> str:
    """The network in a word or two."""
    m = setup.model_config
    return f"capsnet, {m.routing} routing," if isinstance(m, CapsNetConfig) else setup.config.model


def frozen_source(setup: Setup) -> tuple[Config, Path]:
    """See :func:`experiments.frozen.source`."""
    return frozen.source(setup.config, len(setup.model_config.capsule_layers))


def keys(config: Config) -> tuple[jax.Array, jax.Array]:
    """Of the initial weights, and of batches and augmentation."""
    key = jax.random.key(config.seed)
    return jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Of a (resolved) configuration."""
    return train.adam(
        config.learning_rate, config.decay_rate, config.decay_steps, config.learning_rate_floor
    )


def initial_state(setup: Setup, *, couplings: bool = True) -> train.TrainState:
    """The state before the first step, on all devices.

    Args:
      setup: of the run. couplings: read those that ``--routing=frozen`` needs.
    """
    key, _ = keys(setup.config)
    init = jax.jit(
        lambda key: train.init_state(setup.model, setup.optimizer, key),
        compiler_options=runtime.quick_to_compile(setup.devices),
    )
    state = init(key)
    if setup.config.routing == "frozen" and couplings:
        config, folder = frozen_source(setup)
        other = prepare(config, setup.dataset)
        prior = frozen.log_couplings(other, initial_state(other), folder)
        state.params["classes"]["prior"] = prior
    return runtime.replicate(state, setup.devices)


def training_inputs(setup: Setup) -> tuple[Any, jax.Array]:
    """Training data and the key of batches and augmentation, on all devices."""
    _, key = keys(setup.config)
    return runtime.replicate((setup.stream.source, key), setup.devices)


def resume(setup: Setup, checkpoints: io.Checkpoints, workdir: Path, total: int):
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
    """Many steps in one call: ``chunk(state, source, order, key, count)``.

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
        setup.loss, setup.optimizer, axis_name=axis_name, total_steps=total_steps(setup)
    )

    def body(state, source, order, key, count, which):
        def one(state):
            images, labels, dropout_key = sampling.batch(
                setup.stream.example,
                source,
                order,
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


def evaluator(setup: Setup) -> Callable:
    """``evaluate(params, images, labels)``: metrics of raw examples, NumPy arrays ``[N]``.

    The last batch is filled up and the filling cut off, so every example counts once.
    """
    size = -(-EVALUATION_BATCH // len(setup.devices)) * len(setup.devices)
    step, stream = train.make_eval_step(setup.measure), setup.stream

    @jax.jit
    def several(params, images, labels, count):
        """Metrics ``[B, N]`` of the first ``count`` of N batches, images ``[B, N, ...]``."""

        def one(n):
            x, y = images[:, n], labels[:, n]
            return step(params, jax.vmap(stream.input)(x), jax.vmap(stream.label)(x, y))

        def put(n, out):
            return jax.tree.map(lambda all, x: all.at[:, n].set(x), out, one(n))

        out = jax.eval_shape(one, 0)
        out = jax.tree.map(lambda x: jnp.zeros((size, EVALUATION_BATCHES), x.dtype), out)
        return jax.lax.fori_loop(0, count, put, out)

    def evaluate(params, images, labels):
        batches, found = -(-len(labels) // size), []
        for start in range(0, batches, EVALUATION_BATCHES):
            # Example n is in column n // size. Columns that only fill up are not computed.
            rows = np.arange(EVALUATION_BATCHES * size).reshape(-1, size).T + start * size
            rows %= len(labels)
            chunk = runtime.split((images[rows], labels[rows]), setup.devices)
            out = several(params, *chunk, min(EVALUATION_BATCHES, batches - start))
            found.append({name: np.asarray(x).T.ravel() for name, x in out.items()})
        return {
            name: np.concatenate([part[name] for part in found])[: len(labels)]
            for name in found[0]
        }

    return evaluate


def fit(
    setup, state, total, metrics, checkpoints, evaluate, profile
) -> tuple[train.TrainState, int]:
    """Train up to step ``total``, writing metrics and checkpoints as it goes.

    Returns:
      The state, and 0 or the number of the signal that stopped training before the end.
    """
    config, dataset = setup.config, setup.dataset
    per_epoch = steps_per_epoch(setup)
    pause = steps_between_saves(setup)
    step = int(state.step)
    chunk = make_chunk(setup)
    source, key = training_inputs(setup)
    measure = probe.make_probe(setup)
    held_out = setup.stream.held_out("validation")
    make_order = jax.jit(sampling.epoch_order, static_argnums=2)
    order = None

    def enough():
        return step % pause == 0 and setup.task.enough(config, metrics.rows)

    with Display(config, metrics, step, total, per_epoch) as display, Stop() as stop:
        while step < total and not stop.requested and not enough():
            epoch, within = divmod(step, per_epoch)
            if order is None or within == 0:
                order = make_order(key, epoch, len(dataset.train_labels))
            to_log = config.log_every - step % config.log_every
            most = min(per_epoch - within, total - step)
            count = profile.count(min(to_log, most), most)
            state, sums = profile.run(chunk, state, source, order, key, count)
            step += count
            display.trained(step, count, sums)
            epoch_ends = step % pause == 0 or step == total
            if epoch_ends or stop.requested:
                display.flush()
                if epoch_ends and len(held_out[1]):
                    display.validated(step, evaluate(state.params, *held_out))
                if epoch_ends and measure:
                    display.measured(step, measure(state.params))
                metrics.sync()
                checkpoints.save(state, step)
    return state, stop.requested if step < total and not enough() else 0
