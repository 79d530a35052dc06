"""What routing does inside a network in training, for ``--diagnostics``."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from capsjax import functional
from capsjax.models import CapsNetConfig
from capsjax.routing.diagnostics import Diagnostics, diagnose
from experiments import figures

IMAGES = 128
ROWS = ("entropy", "logit_change", "agreement", "spread_over_examples", "dead", "always_on")


def make_probe(setup) -> Callable | None:
    """``measure(params) -> row`` for metrics.jsonl, over images that are not trained on.

    Args:
      setup: of :mod:`experiments.loop`.

    Returns:
      None where nothing is asked for.
    """
    if not setup.config.diagnostics or not isinstance(setup.model_config, CapsNetConfig):
        return None
    held_out, _ = setup.stream.held_out("validation")
    images = (held_out if len(held_out) else setup.stream.held_out("train")[0])[:IMAGES]
    diagnostics = _diagnostics(setup)

    def measure(params):
        values = diagnostics(params, images)._asdict()
        return {name: np.asarray(values[name]).round(6).tolist() for name in ROWS}

    return measure


def _diagnostics(setup) -> Callable[..., Diagnostics]:
    config = setup.model_config
    logit = config.make_routing().logit
    apply = functional.create(config).apply

    @jax.jit
    def diagnostics(params, images):
        x = jax.vmap(setup.stream.input)(images)
        trace = apply(params, x, trace=True, method="encode").aux
        votes = apply(params, x, method="votes")
        return diagnose(trace, votes, threshold=0.0 if logit else 0.5)

    return diagnostics


def draw(setup, params, folder: Path, rows: list, title: str) -> list[Path]:
    """Figures of the trained network over test images; returns their paths."""
    config = setup.model_config
    images = setup.stream.held_out("test")[0][:IMAGES]
    d = jax.device_get(_diagnostics(setup)(params, images))
    names = setup.dataset.class_names
    paths = [folder / f"{name}.png" for name in ("routing", "couplings", "logit_changes")]
    figures.routing_diagnostics(paths[0], d.entropy, d.logit_change, d.activity, names, title=title)
    grid = None
    if not config.capsule_layers:
        grid = (*config.primary_grid, config.primary_types)
    figures.coupling_matrix(paths[1], d.mean_coupling, names, title=title, grid=grid)
    if not len(d.logit_change):
        return paths[:2]
    figures.logit_changes(paths[2], [r for r in rows if "logit_change" in r], title=title)
    return paths
