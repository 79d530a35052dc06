"""What devices divide besides the batch: the state of the optimizer."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from capsjax.train import TrainState
from experiments.config import UserError
from experiments.tasks.base import Setup
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
