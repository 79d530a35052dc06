"""A run opened from its folder: its configuration, its network, its newest parameters."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from capsjax import train
from experiments import data, images, io, preparation, programs
from experiments.errors import UserError


class Run(NamedTuple):
    """What a folder holds."""

    folder: Path
    setup: preparation.Setup  # on one device; without examples where only the network was asked for
    facts: dict  # see experiments.images.facts
    step: int  # of the parameters
    params: Any


def open_run(
    folder: str,
    *,
    accelerator: str = "auto",
    data_dir: str = "",
    cache_dir: str = "",
    examples: bool = False,
) -> Run:
    """Open a run, finished or not, and change nothing in it.

    Args:
      folder: of the run. accelerator: where to compute.
      data_dir, cache_dir: in place of the run's own.
      examples: load the data set; otherwise only what network.json says of it.

    Raises:
      UserError: there is no such run, this version can't read it, or it has no checkpoint yet.
    """
    folder = Path(folder)
    here = {"accelerator": accelerator, "num_devices": 1, "parallel": "jit"}
    # How routing is computed is a matter of the machine, what is computed is not.
    here |= {"routing_implementation": "auto", "workdir": str(folder)}
    here |= {n: v for n, v in (("data_dir", data_dir), ("cache_dir", cache_dir)) if v}
    config = programs.config_of(folder, **here)
    if not io.has_checkpoints(config):
        raise UserError(f"{folder} has no checkpoint yet; one is written after each validation")
    if examples:
        setup = preparation.prepare(config)
        facts = images.facts(setup.dataset)
    else:
        facts = _facts(folder / "network.json")
        setup = preparation.prepare(config, _without_examples(config, facts))
    shapes = jax.eval_shape(
        lambda key: train.init_state(setup.model, setup.optimizer, key), jax.random.key(0)
    )
    place = SingleDeviceSharding(setup.devices[0])
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)
    with io.Checkpoints(folder, read_only=True) as checkpoints:
        step = checkpoints.latest()
        if step is None:
            raise UserError(f"{folder} has no checkpoint yet")
        params = checkpoints.restore(target).params
    return Run(folder, setup, facts, step, params)


def _facts(path: Path) -> dict:
    try:
        found = json.loads(path.read_text())
        return {name: found[name] for name in ("image_shape", "class_names", "border")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} can't be read ({error!r}); repeating the run's command writes it again"
        ) from error


def _without_examples(config, facts):
    none = np.zeros((0, *facts["image_shape"]), np.uint8), np.zeros(0, np.int32)
    return data.Dataset(config.dataset, "network.json", *none * 3, tuple(facts["class_names"]))
