"""What devices divide besides the batch: the state of the optimizer, and input capsules."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from capsjax.functional import split
from capsjax.models import CapsNetConfig
from capsjax.routing import CapsuleShards
from capsjax.train import TrainState
from capsjax.votes import VOTES
from experiments.config import Config, UserError
from experiments.tasks.base import Setup
from experiments.tasks.objective import make_objective
from experiments.training import collectives
from experiments.training.devices import AXIS, mesh_of, replicate


def check(setup: Setup) -> None:
    """Refuses to divide what the strategy does not divide.

    Raises:
      UserError: the reason.
    """
    config = setup.config
    if config.shard_optimizer and config.parallel != "jit":
        raise UserError(
            f"--shard_optimizer is done by the compiler: use --parallel=jit, not {config.parallel}"
        )


def _divides_optimizer(setup: Setup) -> bool:
    return setup.config.shard_optimizer and len(setup.devices) > 1


def divided_shardings(tree: Any, devices: list[jax.Device]) -> Any:
    """Returns shardings by which each device holds an equal part of the leaves of a pytree.

    A leaf is divided along its first axis whose size is a multiple of the number of devices. One
    that has none is on all of them.
    """
    mesh = mesh_of(devices)

    def of(x):
        axes = [n for n, size in enumerate(x.shape) if size and size % len(devices) == 0]
        spec = PartitionSpec(*[None] * axes[0], AXIS) if axes else PartitionSpec()
        return NamedSharding(mesh, spec)

    return jax.tree.map(of, tree)


def place_state(setup: Setup, state: TrainState) -> TrainState:
    """Puts the first process's initial state on the devices of a run, each leaf where it stays."""
    # Other machines might round random numbers otherwise.
    state = collectives.arrays_of_first(state)
    placed = replicate(state._replace(opt_state=()), setup.devices)
    if not _divides_optimizer(setup):
        return placed._replace(opt_state=replicate(state.opt_state, setup.devices))
    shardings = divided_shardings(state.opt_state, setup.devices)
    opt_state = jax.tree.map(collectives.place, state.opt_state, shardings)
    return placed._replace(opt_state=opt_state)


def keep_divided(setup: Setup) -> Callable[[TrainState], TrainState]:
    """Returns a function of the state inside jit by which ``--shard_optimizer`` holds in each step.

    From its two annotations the compiler concludes that a device needs the gradient of its part
    alone, updates that, and gets the other parts of the new parameters from the others: ZeRO-1 of
    Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models"
    (2020). Without the flag the function changes nothing.
    """
    if not _divides_optimizer(setup):
        return lambda state: state
    whole = NamedSharding(mesh_of(setup.devices), PartitionSpec())

    def keep(state):
        divided = divided_shardings(state.opt_state, setup.devices)
        return state._replace(
            params=jax.lax.with_sharding_constraint(state.params, whole),
            opt_state=jax.lax.with_sharding_constraint(state.opt_state, divided),
        )

    return keep


def state_shardings(setup: Setup) -> TrainState | None:
    """Returns the shardings of a state after each call, a prefix of it; None if nothing is divided.

    Without them the compiler would choose, and might leave parameters divided.
    """
    if not _divides_optimizer(setup) and setup.config.capsule_shards == 1:
        return None
    whole = NamedSharding(mesh_of(setup.devices), PartitionSpec())
    placed = TrainState(whole, whole, whole, whole, whole)
    if not _divides_optimizer(setup):
        return placed
    shapes = jax.eval_shape(setup.model.init, jax.random.key(0))
    opt_state = jax.eval_shape(setup.optimizer.init, split(shapes)[0])
    return placed._replace(opt_state=divided_shardings(opt_state, setup.devices))


def divide_capsules(
    config: Config, devices: list[jax.Device], network: CapsNetConfig
) -> CapsNetConfig:
    """Returns a network whose input capsules are divided among devices by ``--capsule_shards``.

    The devices are the mesh ``[data, capsules]``. Before the routed layer they all divide the
    batch.

    Raises:
      UserError: something can't be divided, with the reason.
    """
    count = config.capsule_shards
    if count == 1:
        return network
    capsules = network.primary_grid[0] * network.primary_grid[1] * network.primary_types
    unit = network.primary_types if VOTES[network.votes].by_types else 1
    reasons = {
        "the compiler divides them: use --parallel=jit": config.parallel != "jit",
        f"the number of devices, {len(devices)}, is no multiple of it": len(devices) % count,
        "it streams: use --routing_implementation=auto": (
            config.routing_implementation not in ("auto", "stream")
        ),
        "convolutional capsule layers keep all votes": network.capsule_layers,
        "layers with --routing_schedule=concurrent keep all votes": (
            network.routing_schedule != "sequential"
        ),
        "layers with coordinates keep all votes": network.coordinates != "none",
        "the networks of an --ensemble are not divided": getattr(config, "ensemble", 1) > 1,
        f"{capsules} input capsules of {network.primary_types} types can't be divided by it": (
            capsules % (count * unit)
        ),
    }
    for reason, holds in reasons.items():
        if holds:
            raise UserError(f"--capsule_shards={count}: {reason}")
    grid = mesh_of(devices).devices.reshape(-1, count)
    mesh = Mesh(grid, (AXIS, "capsules"), axis_types=(AxisType.Auto,) * 2)
    return dataclasses.replace(network, routing_implementation=CapsuleShards(mesh, "capsules"))


def undivided(setup: Setup) -> Setup:
    """Returns a setup whose network runs on one device, for what one process does alone."""
    if setup.config.capsule_shards == 1:
        return setup
    network = dataclasses.replace(setup.model_config, routing_implementation="auto")
    model, loss, measure = make_objective(setup.task, setup.config, network, setup.dataset)
    return setup._replace(model_config=network, model=model, loss=loss, measure=measure)
