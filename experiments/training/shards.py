"""What devices divide besides the batch: the state of the optimizer, and input capsules."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from capsjax.models import CapsNetConfig
from capsjax.models.sharding import weight_specs
from capsjax.routing import CapsuleShards
from capsjax.train import TrainState
from capsjax.votes import VOTES
from experiments.config import Config, UserError
from experiments.tasks.base import Setup
from experiments.tasks.objective import make_objective
from experiments.training import collectives
from experiments.training.devices import CAPSULES, mesh_of


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


def _among_all(mesh: Mesh, x: Any, spec: PartitionSpec) -> PartitionSpec:
    """Divides an array equally among all devices, along its first axis that can be divided so.

    One that is divided already is divided further along the same axis, so that each device has a
    part of its own part. An array without such an axis stays as it is.
    """
    (first,) = tuple(spec) or (None,)
    if first:
        others = [name for name in mesh.axis_names if name != first]
        return spec if x.shape[0] % mesh.size else PartitionSpec((first, *others))
    axes = [n for n, size in enumerate(x.shape) if size and size % mesh.size == 0]
    return PartitionSpec(*[None] * axes[0], mesh.axis_names) if axes else spec


def divides_capsules(setup: Setup) -> bool:
    """Returns whether a device has a part of the input capsules alone."""
    return setup.config.capsule_shards > 1


def divides_state(setup: Setup) -> bool:
    """Returns whether a device has a part of the state alone."""
    return _divides_optimizer(setup) or divides_capsules(setup)


def state_shardings(setup: Setup, state: TrainState) -> TrainState:
    """Returns the sharding of each leaf of a state.

    With ``--capsule_shards`` a device has the weights between its own input capsules and the class
    capsules, and their moments. With ``--shard_optimizer`` moments are divided among all devices.
    All else is on every device.

    Args:
      setup: of the run.
      state: its arrays or their shapes.
    """
    mesh = mesh_of(setup.devices, setup.config.capsule_shards)
    specs = weight_specs(setup.model_config, state)
    if _divides_optimizer(setup):
        moments = functools.partial(_among_all, mesh)
        specs = specs._replace(opt_state=jax.tree.map(moments, state.opt_state, specs.opt_state))
    return jax.tree.map(functools.partial(NamedSharding, mesh), specs)


def place_state(setup: Setup, state: TrainState) -> TrainState:
    """Puts the first process's initial state on the devices of a run, each leaf where it stays."""
    # Other machines might round random numbers otherwise.
    state = collectives.arrays_of_first(state)
    return jax.tree.map(collectives.place, state, state_shardings(setup, state))


def keep_divided(setup: Setup) -> Callable[[TrainState], TrainState]:
    """Returns a function of the state inside jit that keeps each part of it where it belongs.

    From the annotations of ``--shard_optimizer`` the compiler concludes that a device needs the
    gradient of its part alone, updates that, and gets the other parts of the new parameters from
    the others: ZeRO-1 of Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion
    Parameter Models" (2020). Where nothing is divided the function changes nothing.
    """
    if not divides_state(setup):
        return lambda state: state
    return lambda state: jax.lax.with_sharding_constraint(state, state_shardings(setup, state))


def divide_capsules(
    config: Config, devices: list[jax.Device], network: CapsNetConfig
) -> CapsNetConfig:
    """Returns a network whose input capsules are divided among devices by ``--capsule_shards``.

    They are those of the class capsules. The devices are the mesh ``[data, capsules]``; before
    the class capsules they all divide the batch.

    Raises:
      UserError: something can't be divided, with the reason.
    """
    count = config.capsule_shards
    if count == 1:
        return network
    capsules, types = network.class_inputs
    unit = types if VOTES[network.votes].by_types else 1
    reasons = {
        "the compiler divides them: use --parallel=jit": config.parallel != "jit",
        f"the number of devices, {len(devices)}, is no multiple of it": len(devices) % count,
        "it streams: use --routing_implementation=auto": (
            config.routing_implementation not in ("auto", "stream")
        ),
        "layers with --routing_schedule=concurrent keep all votes": (
            network.routing_schedule != "sequential"
        ),
        "layers with coordinates keep all votes": network.coordinates != "none",
        "the networks of an --ensemble are not divided": getattr(config, "ensemble", 1) > 1,
        f"{capsules} input capsules of {types} types can't be divided by it": (
            capsules % (count * unit)
        ),
    }
    for reason, holds in reasons.items():
        if holds:
            raise UserError(f"--capsule_shards={count}: {reason}")
    shards = CapsuleShards(mesh_of(devices, count), CAPSULES)
    return dataclasses.replace(network, routing_implementation=shards)


def undivided(setup: Setup) -> Setup:
    """Returns a setup whose network runs on one device, for what one process does alone."""
    if setup.config.capsule_shards == 1:
        return setup
    network = dataclasses.replace(setup.model_config, routing_implementation="auto")
    model, loss, measure = make_objective(setup.task, setup.config, network, setup.dataset)
    return setup._replace(model_config=network, model=model, loss=loss, measure=measure)
