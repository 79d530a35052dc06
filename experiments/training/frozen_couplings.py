"""Couplings of a finished run, averaged over its training images, for ``--routing=frozen``."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp

from capsjax import functional, log_mean_coupling
from experiments.config import Config, UserError
from experiments.training.checkpoints import Checkpoints

BATCH = 128
# What two runs may differ in for the couplings of one to fit the other.
FREE = {"routing", "routing_implementation", "frozen_from", "loss", "seed", "learning_rate"}


def source(config: Config, capsule_layers: int) -> tuple[Config, Path]:
    """The dynamic run whose couplings a run with ``--routing=frozen`` takes, and its folder.

    Args:
      config: of the frozen run. capsule_layers: of its network, before the class capsules.

    Raises:
      UserError: it is not there, not finished, or its network has other sizes.
    """
    if capsule_layers:
        raise UserError("--routing=frozen knows one routed layer; this network has more")
    dynamic = dataclasses.replace(config, routing="dynamic", frozen_from="")
    folder = Path(config.frozen_from or dynamic.default_workdir())
    if not (folder / "summary.json").exists():
        where = f" --workdir={folder}" if config.frozen_from else ""
        raise UserError(
            f"--routing=frozen takes the couplings of a finished dynamic run, and {folder} holds "
            f"none; first run {dynamic.command()}{where}, or name another with --frozen_from"
        )
    stored = json.loads((folder / "config.json").read_text())
    wanted = dynamic.identity()
    different = sorted(n for n in wanted.keys() - FREE if stored.get(n) != wanted[n])
    different += ["routing"] * (stored.get("routing") != "dynamic")
    if different:
        name = different[0]
        raise UserError(
            f"--frozen_from={folder} is another kind of run: {name}={stored.get(name)} there, "
            f"{wanted[name]} here"
        )
    return dynamic, folder


def log_couplings(setup, state, folder: Path) -> jax.Array:
    """Logarithm of the mean coupling coefficients ``[I, J]`` of a finished run.

    Args:
      setup: of that run. state: an initial one, for its shapes. folder: where the run is.
    """
    with Checkpoints(folder) as checkpoints:
        params = checkpoints.restore(state).params
    # Couplings exist where votes do.
    config = dataclasses.replace(setup.model_config, routing_implementation="naive")
    apply = functional.create_model(config).apply

    @jax.jit
    def total(params, images):
        out = apply(params, jax.vmap(setup.stream.input)(images), method="encode")
        return jnp.sum(out.coupling, axis=0)

    images, _ = setup.stream.held_out("train")
    parts = [total(params, images[n : n + BATCH]) for n in range(0, len(images), BATCH)]
    return log_mean_coupling(sum(parts), len(images))
