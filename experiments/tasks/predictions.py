"""What the network of any run says of images: one class, two, or a set."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from capsjax import functional, map_batches
from capsjax.models import CapsNetConfig, Prediction
from capsjax.models import Config as ModelConfig
from experiments.tasks.base import Setup
from experiments.tasks.label_sets import PRESENT

BATCH = 64


class Predictions(NamedTuple):
    """Predictions for N images."""

    scores: np.ndarray  # [N, J] lengths, activations or probabilities
    named: list[list[int]]  # the classes that are said to be in each image, best first
    reconstruction: np.ndarray | None  # [N, H, W, C], of the named classes, or of the best one


class Network(NamedTuple):
    """A network as :func:`predict` needs it; of an ensemble, one with the mean scores."""

    model: functional.Model
    config: ModelConfig
    labels_per_image: int | None  # that are named; None: all of those that are present


def score_name(config: ModelConfig) -> str:
    """Returns what the scores of a network are: length, activation, or probability."""
    if not isinstance(config, CapsNetConfig):
        return "probability"
    traits = config.make_routing().traits
    if traits.scores_are_logits:
        return "probability"
    return "length" if traits.squash_primary else "activation"


def score_function(network: Network) -> Callable[[jax.Array], jax.Array]:
    """Returns what makes lengths, activations or probabilities of the output of a network."""
    if score_name(network.config) != "probability":
        return lambda scores: scores
    return jax.nn.softmax if network.labels_per_image == 1 else jax.nn.sigmoid


def network_of(setup: Setup) -> Network:
    """Returns the network of a run."""
    labels = None if setup.dataset.multi_label else setup.pipeline.labels
    model = setup.model
    if getattr(setup.config, "ensemble", 1) > 1:

        def apply(variables, images):
            return Prediction(jnp.mean(setup.model.apply(variables, images).scores, axis=0))

        model = model._replace(apply=apply)
    return Network(model, setup.model_config, labels)


def predict(network: Network, variables, inputs: np.ndarray) -> Predictions:
    """Returns what a network says of its inputs ``[N, H, W, C]``, N at least 1.

    A network of single images names the best class, one of pairs the best two, and one of images
    with sets of labels all classes with a score of one half or more.
    """
    model, config, count = network
    scores_of = score_function(network)
    decodes = getattr(config, "decoder", None) is not None

    @jax.jit
    def some(variables, x):
        def draw(mask):
            return model.apply(variables, out.pose, mask, method="decode")

        out = model.apply(variables, x)
        scores = scores_of(out.scores)
        classes = scores.shape[1]
        order = jnp.argsort(-scores, axis=1, stable=True)
        best = [jax.nn.one_hot(order[:, k], classes) for k in range(count or 1)]
        present = sum(best) if count else (scores >= PRESENT).astype(jnp.float32)
        drawn = None
        if decodes and count:
            # Networks of pairs decode one class at a time; the sum is what overlaying them gives.
            drawn = jnp.minimum(sum(map(draw, best)), 1)
        elif decodes:
            drawn = draw(jnp.where(jnp.any(present > 0, axis=1, keepdims=True), present, best[0]))
        return scores, order, present, drawn

    def batch(x, _):
        return jax.device_get(some(variables, x))

    scores, order, present, drawn = map_batches(batch, inputs, min(BATCH, len(inputs)))
    named = [[int(k) for k in row if there[k]] for row, there in zip(order, present, strict=True)]
    return Predictions(scores, named, drawn)
