"""What the processes of a run must agree on, before they train and while they do."""

import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.config import UserError, names_of
from experiments.tasks.base import Setup
from experiments.training import collectives, processes
from experiments.training.results import versions


def check(setup: Setup) -> None:
    """Refuses several processes that would not train one run.

    Raises:
      UserError: a flag does not work with several, or one has other flags or data.
    """
    config = setup.config
    if processes.count() == 1:
        return
    for flag, wrong, cure in (
        ("parallel=pmap", config.parallel == "pmap", "use jit or shard_map"),
        ("microbatch=auto", config.microbatch == "auto", "name a number of images"),
        ("routing=frozen", config.routing == "frozen", "train it in one process"),
    ):
        if wrong:
            raise UserError(f"--{flag} is for one process; with --distributed {cure}")
    places = names_of(config, "path")
    facts = {name: value for name, value in vars(config).items() if name not in places}
    _check_same(facts | {"data": setup.dataset.checksum} | versions())


def _check_same(facts: dict[str, Any]) -> None:
    """Refuses facts, by name, that are others than those of the first process, in all of them."""
    first, own = collectives.value_of_first(facts), json.loads(json.dumps(facts))
    different = [name for name in own if own[name] != first.get(name)]
    agreed = all_agree(not different)
    if different:
        name = different[0]
        raise UserError(
            f"process {jax.process_index()} has {name}={own[name]} and process 0 has "
            f"{name}={first.get(name)}: start all with the same flags, data and packages"
        )
    if not agreed:
        raise UserError("another process has other flags, data or packages, as its own line says")


def all_agree(yes: bool) -> bool:
    """Returns whether all processes say yes."""
    if processes.count() == 1:
        return yes
    return bool(multihost_utils.process_allgather(np.int32(yes)).all())


def make_agreement(devices: list[jax.Device]) -> Callable[[int], int] | None:
    """Returns ``agree(request)``, by which all processes learn what one of them has requested.

    ``request`` is 0 for nothing. What is returned was given to the call before, so that no device
    waits for a process. With one process there is nothing to agree on, and None is returned.
    """
    if processes.count() == 1:
        return None
    mesh = Mesh(np.array(devices), ("devices",))
    divided = NamedSharding(mesh, PartitionSpec("devices"))
    both = jax.jit(
        lambda x: jnp.stack([jnp.max(x), jnp.min(x)]),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )
    pending = []

    def agree(request):
        own = np.array([request], np.int32)
        shape = (len(devices),)
        pending.append(both(jax.make_array_from_callback(shape, divided, lambda index: own)))
        if len(pending) == 1:
            return 0
        largest, smallest = np.asarray(pending.pop(0).addressable_data(0)).tolist()
        return largest or smallest

    return agree
