"""Everything that follows from a configuration before training: data, network, first state."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from capsjax import functional, make_schedule, optimizers, train
from capsjax.models import CapsNetConfig
from capsjax.models import Config as ModelConfig
from capsjax.routing import PassKernels, has_pass_kernels, make_routing
from capsjax.update_factors import scale_updates
from experiments.config import (
    Config,
    UserError,
    choose_input_norm,
    network_config,
    resolve,
)
from experiments.config.fine_tuning import factor_of
from experiments.config.flags import LARGEST
from experiments.data import batching, datasets
from experiments.tasks.base import Program, Setup
from experiments.tasks.objective import check_balance, make_objective
from experiments.training import (
    frozen_couplings,
    initial_weights,
    memory,
    pieces,
    processes,
    shards,
    training_data,
)
from experiments.training.devices import (
    find_devices,
    keep_compiled_programs,
    quick_to_compile,
    replicate,
)
from kernels.api import select


def prepare(program: Program, config: Config, dataset: datasets.Dataset | None = None) -> Setup:
    """Finds devices, data, network, loss and optimizer of a configuration.

    Args:
      program: the command whose run it is.
      config: as the flags give it.
      dataset: takes the place of the data set that the configuration names.

    Raises:
      UserError: the configuration contradicts itself, the data or the devices.
    """
    if config.workdir:
        config.folder()  # its name is checked before anything else
    keep_compiled_programs(config.cache_dir)
    devices = find_devices(config.accelerator, config.num_devices)
    dataset = dataset or training_data.load(config, devices)
    config = resolve(config, dataset.name)
    check_balance(config, dataset)
    pipeline = program.task.pipeline(config, dataset)
    config = choose_input_norm(config, pipeline.shape[-1], pipeline.steps)
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
    model_config = network_config(config, pipeline.shape, dataset.num_classes, implementation)
    if isinstance(implementation, PassKernels) and not has_kernels(model_config, implementation):
        if config.routing_implementation != "auto":
            raise UserError(
                f"--routing_implementation={config.routing_implementation}: {config.routing} "
                "routing with these votes has no kernels, use stream"
            )
        model_config = dataclasses.replace(model_config, routing_implementation="auto")
    model_config = shards.divide_capsules(config, devices, model_config)
    try:
        model, loss, measure = make_objective(program.task, config, model_config, dataset)
        parameters = functional.count_parameters(jax.eval_shape(model.init, jax.random.key(0)))
    except (OverflowError, MemoryError) as error:
        raise UserError("a network of these sizes is beyond any memory") from error
    pieces.check(config, len(devices), model)
    memory.check_fits(config, dataset, pipeline.shape, devices, model_config, parameters)
    # A saved run that is opened without its examples is not trained: any length will do.
    examples = len(dataset.train_labels)
    steps = number_of_steps(config, examples) if examples else config.warmup_steps + 1
    optimizer = make_optimizer(config, steps)
    network = (model_config, model, loss, measure, optimizer, parameters)
    return Setup(config, program, dataset, pipeline, devices, *network)


def has_kernels(config: ModelConfig, kernels: PassKernels) -> bool:
    """Returns whether kernels can compute all routed layers of a network, or their votes."""
    if not isinstance(config, CapsNetConfig):
        return False
    votes = {config.votes, *([config.layer_votes] if config.capsule_layers else [])}
    routing, has_votes = config.make_routing(), kernels.votes is not None
    return all(has_pass_kernels(routing, kind) or (kind == "full" and has_votes) for kind in votes)


def steps_per_epoch(setup: Setup) -> int:
    """Returns the number of training steps in one pass over the training data."""
    return batching.steps_per_epoch(len(setup.dataset.train_labels), setup.config.batch_size)


def make_orders(setup: Setup, key: jax.Array, block: jax.Array) -> jax.Array:
    """Returns the rows ``[E, N]`` that the epochs of a block visit, by ``--sampler``."""
    labels = setup.dataset.train_labels
    epochs = steps_per_block(setup) // steps_per_epoch(setup)
    if setup.config.sampler == "balanced":
        labels, classes = jnp.asarray(labels), setup.dataset.num_classes
        return batching.balanced_orders(key, block, labels, classes, epochs)
    return batching.epoch_orders(key, block, len(labels), epochs)


def steps_per_block(setup: Setup) -> int:
    """Returns the steps of a block: an epoch, or several short ones, ordered together."""
    per_epoch = steps_per_epoch(setup)
    return -(-setup.config.log_every // per_epoch) * per_epoch


def steps_between_saves(setup: Setup) -> int:
    """Returns the steps between checkpoints: ``--validate_every``, or else one block."""
    return setup.config.validate_every or steps_per_block(setup)


def total_steps(setup: Setup) -> int:
    """Returns the number of steps of the whole training run."""
    return number_of_steps(setup.config, len(setup.dataset.train_labels))


def number_of_steps(config: Config, examples: int) -> int:
    """Returns the number of steps of a run on a number of training examples.

    Raises:
      UserError: they are more than can be counted.
    """
    total = config.steps or config.epochs * batching.steps_per_epoch(examples, config.batch_size)
    if total > LARGEST:
        raise UserError(f"--epochs={config.epochs} are {total:,} steps, more than {LARGEST:,}")
    return total


def random_keys(config: Config) -> tuple[jax.Array, jax.Array]:
    """Returns the key of the initial weights and the key of batches and augmentation."""
    key = jax.random.key(config.seed)
    return jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)


def make_optimizer(config: Config, steps: int) -> optax.GradientTransformation:
    """Returns the optimizer that a (resolved) configuration describes, for a number of steps.

    Raises:
      UserError: the run is not longer than the warm-up.
    """
    if steps <= config.warmup_steps:
        raise UserError(
            f"--warmup_steps={config.warmup_steps} leaves none of the {steps} steps of the run"
        )
    schedule = make_schedule(
        config.schedule,
        config.learning_rate,
        total_steps=steps,
        warmup_steps=config.warmup_steps,
        decay_rate=config.decay_rate,
        decay_steps=config.decay_steps,
        floor=config.learning_rate_floor,
    )
    optimizer = optimizers.make_optimizer(
        config.optimizer,
        schedule,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
        epsilon_hat=config.adam_epsilon_hat,
        members=getattr(config, "ensemble", 1),
    )
    factor = _factor(config)
    return scale_updates(optimizer, factor) if factor else optimizer


def _factor(config: Config) -> Callable[[str], float] | None:
    """Returns the factor of updates by path; constants of the routing are not decayed either."""
    given = factor_of(config)
    constants = make_routing(config.routing).constants if config.routing else ()
    if not constants or not config.weight_decay:
        return given
    return lambda path: 0.0 if path.split(".")[-1] in constants else given(path) if given else 1.0


def first_state(setup: Setup, key: jax.Array) -> train.TrainState:
    """Returns the state before the first step, for the key of the initial weights."""
    average = setup.config.ema > 0
    return train.init_state(setup.model, setup.optimizer, key, average=average)


def initial_state(setup: Setup, *, sources: bool = True) -> train.TrainState:
    """Returns the state before the first step, on all devices.

    Args:
      setup: of the run.
      sources: whether to read what ``--routing=frozen`` and ``--init_from`` take of other runs.
    """
    key, _ = random_keys(setup.config)
    init = functools.partial(first_state, setup)
    make = functools.partial(jax.jit, init, compiler_options=quick_to_compile(setup.devices))
    from_others = setup.config.init_from or setup.config.routing == "frozen"
    if shards.divides_capsules(setup) and not from_others:
        # Made where it belongs, because a device need not have room for all of it.
        shapes = jax.eval_shape(init, key)
        return make(out_shardings=shards.state_shardings(setup, shapes))(key)
    state = make()(key)
    if setup.config.init_from and sources and processes.is_first():
        state = initial_weights.load(setup, state)
    if setup.config.routing == "frozen" and sources:
        config, folder = frozen_couplings.find_source(setup)
        other = prepare(setup.program, config, setup.dataset)
        prior = frozen_couplings.log_couplings(other, initial_state(other), folder)
        state.params["classes"]["prior"] = prior
        if state.average:
            state.average["classes"]["prior"] = jnp.copy(prior)
    return shards.place_state(setup, state)


def training_inputs(setup: Setup) -> tuple[Any, jax.Array]:
    """Returns the training data and the key of batches and augmentation, on all devices."""
    _, key = random_keys(setup.config)
    parts = setup.config.capsule_shards
    return replicate((setup.pipeline.source, key), setup.devices, parts)
