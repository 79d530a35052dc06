"""What is exported: a trained network as one function from a batch of images to named outputs."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from capsjax import Preprocessing, functional
from capsjax.masks import argmax_mask
from capsjax.models import CapsNetConfig
from capsjax.models import Config as ModelConfig
from experiments.analysis.run_network import preprocessing_of
from experiments.analysis.saved_run import SavedRun
from experiments.config import UserError
from experiments.tasks.classification import has_logits
from experiments.tasks.label_sets import PRESENT
from experiments.tasks.predictions import network_of

MEANINGS = {
    "label": "[batch] int32, the class of the largest score",
    "labels": "[batch, 2] int32, the classes of the two largest scores",
    "present": "[batch, J] bool, the classes with a score of one half or more",
    "scores": "[batch, J] lengths or activations of the class capsules, or logits",
    "poses": "[batch, J, D] poses of the class capsules",
    "couplings": "[batch, I, J] coupling coefficients of the last pass to the class capsules",
    "reconstruction": "[batch, H, W, C] in [0, 1], decoded from the capsule of the largest score",
}


class Network(NamedTuple):
    """A network that can be exported."""

    source: str  # the name of the run, or the place of the pretrained network
    apply: Callable[[Any, jax.Array], dict[str, jax.Array]]  # (variables, images) -> outputs
    variables: Any
    shape: tuple[int, int, int]  # of an image
    dtype: str  # of images: uint8 pixels, or float32, what the network itself takes
    labels: tuple[str, ...]  # the names of the J classes
    count: int | None  # classes that are named for an image; None: all above the threshold
    threshold: float  # a score of 0.5, or its logit


class Source(NamedTuple):
    """A trained network and what is known of its images and classes."""

    name: str
    config: ModelConfig
    variables: Any  # a tuple of those of several networks whose scores are averaged
    prepare: Preprocessing  # from uint8 images to inputs
    labels: tuple[str, ...]
    count: int | None  # classes in an image, None for sets of labels


def source_of_run(run: SavedRun) -> Source:
    """Returns the network of a saved run."""
    setup, prepare = run.setup, preprocessing_of(run)
    members = getattr(setup.config, "ensemble", 1)
    variables = run.variables
    if members > 1:
        variables = tuple(jax.tree.map(lambda x, n=n: x[n], variables) for n in range(members))
    return Source(
        run.folder.resolve().name,
        setup.model_config,
        variables,
        prepare,
        tuple(run.facts["class_names"]),
        network_of(setup).labels_per_image,
    )


def make_network(source: Source, *, couplings: bool = False, preprocess: bool = False) -> Network:
    """Returns the function that is exported.

    It computes in float32, whatever the type of the training, with all votes in memory.

    Args:
      source: the trained network.
      couplings: whether coupling coefficients are an output.
      preprocess: whether images are uint8, as in the data set, and the classes are an output.

    Raises:
      UserError: there are no such couplings.
    """
    config = source.config
    config = dataclasses.replace(config, dtype="float32")
    if isinstance(config, CapsNetConfig):
        config = dataclasses.replace(config, routing_implementation="naive")
    averaged = is_ensemble(source.variables)
    if couplings:
        _check_couplings(config, averaged)
    model = functional.create_model(config)
    threshold = 0.0 if has_logits(config) else PRESENT

    def apply(variables, images):
        x = source.prepare(images) if preprocess else images
        if averaged:
            each = [model.apply(one, x).scores for one in variables]
            outputs = {"scores": sum(each) / len(each)}
        else:
            outputs = _outputs(model, config, variables, x, couplings)
        if preprocess:
            outputs = _classes(outputs["scores"], source.count, threshold) | outputs
        return outputs

    shape, dtype = tuple(config.image_shape), "float32"
    if preprocess:
        shape, dtype = source.prepare.image_shape, "uint8"
    decides = source.labels, source.count, threshold
    return Network(source.name, apply, source.variables, shape, dtype, *decides)


def is_ensemble(variables: Any) -> bool:
    """Returns whether variables are those of several networks."""
    return isinstance(variables, tuple) and not isinstance(variables, functional.Variables)


def _check_couplings(config, averaged):
    if not isinstance(config, CapsNetConfig):
        raise UserError("--couplings: this network has no routing")
    if averaged:
        raise UserError(
            "--couplings: an ensemble has those of each network, which are not exported"
        )
    if config.routing_schedule == "concurrent":
        raise UserError("--couplings: the concurrent schedule of routing gives none")


def _outputs(model, config, variables, x, couplings) -> dict[str, jax.Array]:
    """Returns the outputs of one network for inputs ``[B, H, W, C]``."""
    if not isinstance(config, CapsNetConfig):
        found = model.apply(variables, x)
        named = {"scores": found.scores, "poses": found.pose}
        named["reconstruction"] = found.reconstruction
        return {name: value for name, value in named.items() if value is not None}
    out = model.apply(variables, x, method="encode")
    found = {"scores": out.activation, "poses": out.pose}
    if couplings:
        found["couplings"] = out.coupling
    if config.decoder is not None:
        mask = jax.vmap(argmax_mask)(out.activation)
        found["reconstruction"] = model.apply(variables, out.pose, mask, method="decode")
    return found


def _classes(scores, count, threshold) -> dict[str, jax.Array]:
    """Returns the classes that are named for an image."""
    if count is None:
        return {"present": scores >= threshold}
    if count == 2:
        return {"labels": jax.lax.top_k(scores, 2)[1].astype(jnp.int32)}
    return {"label": jnp.argmax(scores, axis=1).astype(jnp.int32)}


def random_images(network: Network, count: int, seed: int = 0) -> np.ndarray:
    """Returns made-up images for a network: of its shape and type, pixels of any brightness."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, *network.shape), np.uint8)
    return pixels if network.dtype == "uint8" else np.float32(pixels) / 255


def weight_bytes(network: Network) -> int:
    """Returns the bytes of the weights in float32."""
    return sum(4 * leaf.size for leaf in jax.tree.leaves(network.variables))
