"""Looks at the capsule layers at the start and after the first epoch, and says what is wrong.

A layer whose capsules are all long is where the squash is flat; one whose capsules are all short is
where its gradient vanishes. Neither learns, and the loss alone does not tell why.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from capsjax import train
from capsjax.models import CapsNetConfig
from capsjax.routing.diagnostics import coupling_entropy
from experiments.tasks.base import Setup
from experiments.training.devices import quick_to_compile, replicate
from experiments.training.setup import steps_between_saves, steps_per_epoch, total_steps

IMAGES = 16
SATURATED = 0.9  # mean activation from which a layer is saturated
DEAD = 0.02  # mean of the largest activation of each example below which a layer is dead
WEAK = 1e-4  # share of the largest gradient of a capsule layer below which a layer has none


class LayerState(NamedTuple):
    """A capsule layer on a few training images."""

    mean: float  # activation
    largest: float  # activation, of each image, mean over the images
    entropy: float  # of the shares of the activation, 1 where all are equal
    gradient: float  # norm of the gradient of the loss by the parameters of the layer


def make_inspect(setup: Setup) -> Callable:
    """Returns ``inspect(step, variables, display, rows)``, called when a run begins and is saved.

    It prints what is wrong before training and after the first epoch, and with ``--diagnostics``
    writes the states of the layers as a row of metrics.jsonl. Runs shorter than an epoch, which are
    trials, are looked at with ``--diagnostics`` alone: it takes another compilation.
    """
    measure, every = make_measure(setup), steps_between_saves(setup)
    first_save = min(-(-steps_per_epoch(setup) // every) * every, total_steps(setup))
    names = {0: "before training", first_save: f"after {first_save} steps"}
    if total_steps(setup) < steps_per_epoch(setup) and not setup.config.diagnostics:
        names = {}
    one_class = _has_one_class(setup)

    def inspect(step, variables, display, rows):
        when, lines = names.get(step), []
        states = measure(variables) if measure and (when or setup.config.diagnostics) else None
        if when and states:
            lines += warnings(setup, states, when)
        if one_class and when and step >= steps_per_epoch(setup):
            lines += no_better_than_chance(setup, rows, when)
        for line in lines:
            display.say(f"warning: {line}")
        # A run that was interrupted before its first checkpoint has the row of step 0 already.
        written = step == 0 and any("layer_entropy" in earlier for earlier in rows)
        if states and setup.config.diagnostics and not written:
            display.measured(step, row(states))

    return inspect


def make_measure(setup: Setup) -> Callable | None:
    """Returns ``measure(variables) -> {layer: LayerState}``, or None for networks without capsules.

    The images are the first of the training data. Nothing random of the run is used.
    """
    if not isinstance(setup.model_config, CapsNetConfig):
        return None
    gradient = train.make_gradient(setup.loss)

    @functools.partial(jax.jit, compiler_options=quick_to_compile(setup.devices))
    def measure(variables, source):
        key = jax.random.key(0)
        rows = jnp.arange(IMAGES) % len(setup.dataset.train_labels)
        keys = jax.random.split(key, IMAGES)
        images, labels = jax.vmap(setup.pipeline.example, (0, None, 0))(keys, source, rows)
        grads, *_ = gradient(variables, images, labels, key)
        layers = setup.model.apply(variables, images, method="capsules")
        states = {}
        for path, (_, activation) in layers.items():
            own = functools.reduce(lambda tree, name: tree[name], path.split("/"), grads)
            squares = [jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(own)]
            states[path] = LayerState(
                jnp.mean(activation),
                jnp.mean(jnp.max(activation, -1)),
                jnp.mean(coupling_entropy(jnp.maximum(activation, 0))),
                jnp.sqrt(sum(squares)),
            )
        return states

    def call(variables):
        source = replicate(setup.pipeline.source, setup.devices, setup.config.capsule_shards)
        states = jax.device_get(measure(variables, source))
        lowest_first = sorted(states, key=lambda path: (path == "classes", path != "primary", path))
        return {path: LayerState(*map(float, states[path])) for path in lowest_first}

    return call


def _has_one_class(setup: Setup) -> bool:
    """Returns whether the label of an example is a class, and not a pair of digits."""
    example = jax.eval_shape(setup.pipeline.example, jax.random.key(0), setup.pipeline.source, 0)
    return getattr(example[1], "shape", None) == ()


def row(states: dict[str, LayerState]) -> dict[str, list[float]]:
    """Returns the states as a row of metrics.jsonl, one number a layer, lowest first."""
    names = {
        "layer_activation": "mean",
        "layer_largest_activation": "largest",
        "layer_entropy": "entropy",
        "layer_gradient": "gradient",
    }
    return {
        name: [float(f"{getattr(s, field):.4g}") for s in states.values()]
        for name, field in names.items()
    }


def warnings(setup: Setup, states: dict[str, LayerState], when: str) -> list[str]:
    """Returns a line for each layer that is saturated or dead.

    Args:
      setup: of the run.
      states: of its layers.
      when: the beginning of each line.
    """
    # Primary capsules are often all long, in networks that learn well. Activations of some
    # algorithms are logits, or shares of one, which say nothing of the layer.
    bounded = setup.model_config.make_routing().traits.loss != "cross_entropy"
    strongest = max(state.gradient for state in states.values())
    # The other squashes make short vectors shorter by their square, with a gradient that vanishes.
    linear = setup.model_config.squash in ("exponential", "none")
    lines = []
    for path, state in states.items():
        if bounded and path != "primary" and state.mean > SATURATED:
            wrong = f"saturated (mean activation {state.mean:.2f})"
            cure = "a smaller --learning_rate, --init=lecun or fewer --routing_iterations"
            # Adam's first steps add up over all pixels that are bright in every image.
            if states["primary"].mean > 0.99 and setup.model_config.input_norm == "none":
                cure = f"--input_norm=image, {cure}"
        elif (bounded or path == "primary") and not linear and state.largest < DEAD:
            wrong = f"dead (largest activations {state.largest:.1g} on the average)"
            cure = "--squash=exponential, --init=lecun or a smaller --learning_rate"
        elif not state.gradient > WEAK * strongest:
            wrong = f"without a gradient ({state.gradient:.1g}, another layer has {strongest:.1g})"
            cure = "--squash=exponential, another --routing or a smaller --depth"
        else:
            continue
        lines.append(f"{when}: the capsules of {path} are {wrong} and learn little; try {cure}")
    return lines


def no_better_than_chance(setup: Setup, rows: list[dict], when: str) -> list[str]:
    """Returns a line if a trained classifier is no better than naming one class.

    That is the largest class of the images that were classified. Where rare classes were made to
    count as much as others, naming the largest one is not what an untrained network comes to, and
    chance is one over the number of classes.

    Args:
      setup: of the run.
      rows: of metrics.jsonl; the last validation counts, or else the last steps of training.
      when: the beginning of the line.
    """
    validated = [1 - row["validation_error"] / 100 for row in rows if "validation_error" in row]
    trained = [row["accuracy"] for row in rows if "accuracy" in row]
    accuracy, data, config = (validated or trained)[-1], setup.dataset, setup.config
    images, labels = (
        (f"{len(data.validation_labels):,} validation images", data.validation_labels)
        if validated
        else ("the last training images", data.train_labels)
    )
    counts = np.bincount(labels)
    chance, name = counts.max() / len(labels), "the largest class alone is"
    if "balanced" in (config.sampler, config.class_weights):
        chance, name = 1 / np.count_nonzero(counts), "guessing gives"
    if accuracy > chance + 1e-9:
        return []
    return [
        f"{when}: {100 * accuracy:.1f}% of {images} are right, and {name} {100 * chance:.1f}%; "
        f"look at the images and labels, then try --learning_rate=0.0003"
    ]
