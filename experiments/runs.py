"""A run opened from its folder: its configuration, its network, its newest parameters."""

import difflib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from jax.sharding import SingleDeviceSharding

from capsjax import train
from experiments import config as config_lib
from experiments import data, images, io, loop, mnist
from experiments.config import Config
from experiments.errors import UserError

PROGRAMS = {"mnist": mnist.DEFAULTS}


class Run(NamedTuple):
    """What a folder holds."""

    folder: Path
    setup: loop.Setup  # on one device; without examples where only the network was asked for
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
    config = read_config(folder, **here)
    if not io.has_checkpoints(config):
        raise UserError(f"--run={folder} has no checkpoint yet; one is written after each epoch")
    if examples:
        setup = loop.prepare(config)
        facts = images.facts(setup.dataset)
    else:
        facts = _read(folder / "network.json", {"image_shape", "class_names", "border"})
        setup = loop.prepare(config, _without_examples(config, facts))
    shapes = jax.eval_shape(
        lambda key: train.init_state(setup.model, setup.optimizer, key), jax.random.key(0)
    )
    place = SingleDeviceSharding(setup.devices[0])
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)
    with io.Checkpoints(folder, read_only=True) as checkpoints:
        step = checkpoints.latest()
        if step is None:
            raise UserError(f"--run={folder} has no checkpoint yet")
        params = checkpoints.restore(target).params
    return Run(folder, setup, facts, step, params)


def read_config(folder: Path, **changes) -> Config:
    """The configuration of a run, with fields changed.

    Raises:
      UserError: it is not there, or not one of this version's.
    """
    path = folder / "config.json"
    if not folder.is_dir():
        there = [p.name for p in folder.parent.glob("*/")] if folder.parent.is_dir() else []
        near = difflib.get_close_matches(folder.name, there, 1)
        hint = f", did you mean {folder.parent / near[0]}?" if near else ""
        raise UserError(f"--run={folder}: no such folder{hint}")
    if not path.exists():
        raise UserError(f"--run={folder} is not the folder of a run: it holds no config.json")
    stored = _read(path, {"program"}) | changes
    program = stored.pop("program")
    if program not in PROGRAMS:
        raise UserError(f"{path}: this version has no program {program!r}")
    given = [f"--{name}={value}" for name, value in stored.items() if value is not None]
    try:
        return config_lib.parse(PROGRAMS[program], given)
    except flags.Error as error:
        raise UserError(f"{path} was written by another version: {error}") from error


def _read(path: Path, names: set[str]) -> dict:
    try:
        found = json.loads(path.read_text())
        if isinstance(found, dict) and names <= found.keys():
            return found
        reason = f"it doesn't say {', '.join(sorted(names))}"
    except FileNotFoundError:
        reason = "not there"
    except (OSError, ValueError) as error:
        reason = str(error)
    raise UserError(f"{path}: {reason}; repeating the run's command writes it again")


def _without_examples(config, facts):
    none = np.zeros((0, *facts["image_shape"]), np.uint8), np.zeros(0, np.int32)
    return data.Dataset(config.dataset, "network.json", *none * 3, tuple(facts["class_names"]))
