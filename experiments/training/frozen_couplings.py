"""Couplings of a finished run, averaged over its training images, for ``--routing=frozen``."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp

from capsjax import functional, log_mean_coupling
from capsjax.train import TrainState
from experiments.config import Config, UserError, command, later_defaults, names_of
from experiments.files import is_integer, is_plain, read_json
from experiments.tasks.base import Setup
from experiments.training.checkpoints import Checkpoints

BATCH = 128


def _dynamic(config: Config) -> Config:
    return dataclasses.replace(config, routing="dynamic", frozen_from="")


def folder_of(config: Config) -> Path:
    """Returns the folder of the run whose couplings a (resolved) configuration takes."""
    return Path(config.frozen_from or _dynamic(config).default_workdir()).expanduser()


def find_source(setup: Setup) -> tuple[Config, Path]:
    """Returns the dynamic run whose couplings a run takes: its configuration and its folder.

    Args:
      setup: of the run with ``--routing=frozen``.

    Raises:
      UserError: it is not there, not finished, or its network has other sizes.
    """
    config = setup.config
    if setup.model_config.capsule_layers:
        raise UserError("--routing=frozen needs a network with one routed layer; this has more")
    dynamic, folder = _dynamic(config), folder_of(config)
    if not (folder / "summary.json").exists():
        first = command(dynamic, setup.program.defaults)
        where = f" --workdir={folder}" if config.frozen_from else ""
        raise UserError(
            f"--routing=frozen takes the couplings of a finished dynamic run, and {folder} holds "
            f"none; first run {first}{where}, or name another with --frozen_from"
        )
    stored = later_defaults(config) | read_json(folder / "config.json")
    wanted = dynamic.identity()
    compared = wanted.keys() - set(names_of(config, "fits_couplings"))
    different = sorted(name for name in compared if stored.get(name) != wanted[name])
    different += ["routing"] * (stored.get("routing") != "dynamic")
    if different:
        name = different[0]
        raise UserError(
            f"--frozen_from={folder} is another kind of run: {name}={stored.get(name)} there, "
            f"{wanted[name]} here"
        )
    return dynamic, folder


def log_couplings(setup: Setup, state: TrainState, folder: Path) -> jax.Array:
    """Returns the logarithm of the mean coupling coefficients ``[I, J]`` of a finished run.

    Args:
      setup: of that run.
      state: an initial one, for its shapes.
      folder: where the run is.

    Raises:
      UserError: its last checkpoint is missing or damaged.
    """
    finished = read_json(folder / "summary.json", {"steps": is_integer, "*": is_plain})["steps"]
    with Checkpoints(folder, read_only=True) as checkpoints:
        if checkpoints.latest() != finished:
            raise UserError(
                f"--frozen_from={folder} has no checkpoint of its last step, {finished}; repeat "
                "its command"
            )
        variables = checkpoints.restore_variables(state)
    # Only the naive implementation returns couplings.
    config = dataclasses.replace(setup.model_config, routing_implementation="naive")
    apply = functional.create_model(config).apply

    @jax.jit
    def total(variables, images):
        out = apply(variables, jax.vmap(setup.pipeline.input)(images), method="encode")
        return jnp.sum(out.coupling, axis=0)

    images, _ = setup.pipeline.held_out("train")
    parts = [total(variables, images[n : n + BATCH]) for n in range(0, len(images), BATCH)]
    return log_mean_coupling(sum(parts), len(images))
