"""What routing does inside a network in training, for ``--diagnostics``."""

import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np

from capsjax.models import CapsNetConfig
from capsjax.routing.diagnostics import Diagnostics, diagnose
from experiments import plots

IMAGES = 128
ROWS = ("entropy", "logit_change", "agreement", "spread_over_examples", "dead", "always_on")


def make_probe(setup) -> Callable | None:
    """``measure(params) -> row`` for metrics.jsonl, over images that are not trained on.

    Args:
      setup: of :mod:`experiments.training.setup`.

    Returns:
      None where nothing is asked for.
    """
    if not setup.config.diagnostics or not can_trace(setup):
        return None
    held_out, _ = setup.stream.held_out("validation")
    images = (held_out if len(held_out) else setup.stream.held_out("train")[0])[:IMAGES]

    def measure(params):
        values = diagnostics(setup, params, images)._asdict()
        return {name: np.asarray(values[name]).round(6).tolist() for name in ROWS}

    return measure


def can_trace(setup) -> bool:
    """Whether the network routes, and in a way that can be traced."""
    config = setup.model_config
    return isinstance(config, CapsNetConfig) and config.routing_schedule == "sequential"


def diagnostics(setup, params, images: np.ndarray) -> Diagnostics:
    """What routing does with raw examples ``[B, ...]``, in NumPy."""
    logits = setup.model_config.make_routing().traits.scores_are_logits
    threshold = 0.0 if logits else 0.5
    functions = setup.model, setup.stream.input, threshold
    return jax.device_get(_diagnostics(*functions, params, images))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _diagnostics(model, to_input, threshold, params, images):
    x = jax.vmap(to_input)(images)
    trace = model.apply(params, x, trace=True, method="encode").aux
    votes = model.apply(params, x, method="votes")
    return diagnose(trace, votes, threshold=threshold)


def pictures(setup, params, rows: list, title: str) -> Iterator[tuple[str, Callable, tuple]]:
    """Of the trained network over test images, see :mod:`experiments.tasks.figures`.

    Changes of the logits (Figure A.1) are those measured in training; without such rows, those
    of the trained network.
    """
    config = setup.model_config
    d = diagnostics(setup, params, setup.stream.held_out("test")[0][:IMAGES])
    names = setup.dataset.class_names
    arguments = (d.entropy, d.logit_change, d.activity, names, title)
    yield "routing", plots.routing_diagnostics, arguments
    grid = None
    if not config.capsule_layers:
        grid = (*config.primary_grid, config.primary_types)
    yield "couplings", plots.coupling_matrix, (d.mean_coupling, names, title, grid)
    if len(d.logit_change):
        measured = [row for row in rows if "logit_change" in row]
        if not measured:
            measured = [rows[-1] | {"logit_change": d.logit_change.tolist()}]
            title += "; measured after training alone"
        yield "logit_changes", plots.logit_changes, (measured, title)
