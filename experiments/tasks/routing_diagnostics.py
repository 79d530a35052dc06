"""What routing does inside a network during training, for ``--diagnostics``."""

import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np

from capsjax.models import CapsNetConfig
from capsjax.routing.diagnostics import Diagnostics, diagnose
from experiments import plots
from experiments.data.batching import spread_rows
from experiments.tasks.base import Setup

IMAGES = 128
ROWS = ("entropy", "logit_change", "agreement", "spread_over_examples", "dead", "always_on")


def make_probe(setup: Setup) -> Callable | None:
    """Returns ``measure(variables) -> row`` for metrics.jsonl, over images that are not trained on.

    Returns None without ``--diagnostics``.
    """
    if not setup.config.diagnostics or not can_trace(setup):
        return None
    held_out, _ = setup.pipeline.held_out("validation")
    images = held_out if len(held_out) else setup.pipeline.held_out("train")[0]
    images = images[spread_rows(len(images), IMAGES)]

    def measure(variables):
        values = diagnostics(setup, variables, images)._asdict()
        return {name: np.asarray(values[name]).round(6).tolist() for name in ROWS}

    return measure


def can_trace(setup: Setup) -> bool:
    """Returns whether the network routes in a way that can be traced."""
    config = setup.model_config
    return isinstance(config, CapsNetConfig) and config.routing_schedule == "sequential"


def diagnostics(setup: Setup, variables, images: np.ndarray) -> Diagnostics:
    """Returns diagnostics of routing over raw examples ``[B, ...]``, in NumPy."""
    logits = setup.model_config.make_routing().traits.scores_are_logits
    threshold = 0.0 if logits else 0.5
    functions = setup.model, setup.pipeline.input, threshold
    return jax.device_get(_diagnostics(*functions, variables, images))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _diagnostics(model, to_input, threshold, variables, images):
    x = jax.vmap(to_input)(images)
    trace = model.apply(variables, x, trace=True, method="encode").aux
    votes = model.apply(variables, x, method="votes")
    return diagnose(trace, votes, threshold=threshold)


def figures(
    setup: Setup, variables, rows: list, title: str
) -> Iterator[tuple[str, Callable, tuple]]:
    """Yields the figures of routing in the trained network, over test images.

    Changes of the logits (Figure A.1) are those measured in training; without such rows, those
    of the trained network.
    """
    config = setup.model_config
    images = setup.pipeline.held_out("test")[0]
    d = diagnostics(setup, variables, images[spread_rows(len(images), IMAGES)])
    names = setup.dataset.class_names
    arguments = (d.entropy, d.logit_change, d.activity, names, title)
    yield "routing", plots.plot_routing_diagnostics, arguments
    grid = None
    if not config.capsule_layers:
        grid = (*config.primary_grid, config.primary_types)
    yield "couplings", plots.plot_coupling_matrix, (d.mean_coupling, names, title, grid)
    if len(d.logit_change):
        measured = [row for row in rows if "logit_change" in row]
        if not measured:
            last = rows[-1] if rows else {"step": 0, "epoch": 0.0}
            measured = [last | {"logit_change": d.logit_change.tolist()}]
            title += "; measured after training alone"
        yield "logit_changes", plots.plot_logit_changes, (measured, title)
