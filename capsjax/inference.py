"""Classifying images with a trained network."""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from capsjax.functional import Model


class Classification(NamedTuple):
    """What a network says about N images."""

    scores: jax.Array  # [N, J] lengths of the class capsules, or logits where a network gives these
    classes: jax.Array  # [N] int32, the class of the largest score
    lengths: jax.Array  # [N] that score
    runner_up: jax.Array  # [N] int32, the class of the second largest score
    runner_up_lengths: jax.Array  # [N] that score
    reconstruction: jax.Array | None  # [N, H, W, C] in [0, 1], drawn from the capsule of `classes`


def classify(
    model: Model, params: Any, images: chex.Array, *, batch_size: int = 128
) -> Classification:
    """The class of each image, the second choice, and what the decoder makes of the first.

    Batches are compiled once for each model and batch size; the last one is filled up, and the
    filling cut off. A pure function, which may itself be part of what is compiled.

    Args:
      model: of :func:`capsjax.create_model`, of two classes or more. params: of the model.
      images: ``[N, H, W, C]``, floats in [0, 1], N at least 1.
      batch_size: images computed together, at most.

    Raises:
      ValueError: no images. TypeError: their pixels are integers.

    Example:
      >>> from capsjax import create_model, preset
      >>> model = create_model(preset("capsnet_tiny", num_classes=3))
      >>> params = model.init(jax.random.key(0))  # or trained ones
      >>> images = jax.random.uniform(jax.random.key(1), (5, 28, 28, 1))
      >>> found = classify(model, params, images, batch_size=2)
      >>> found.classes.shape, found.scores.shape, found.reconstruction.shape
      ((5,), (5, 3), (5, 28, 28, 1))
      >>> bool((found.lengths >= found.runner_up_lengths).all())
      True
    """
    chex.assert_rank(images, 4)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f"images must be floats in [0, 1], not {images.dtype}: divide by 255")
    count = len(images)
    if not count:
        raise ValueError("no images")
    size = min(batch_size, count)
    parts = []
    for start in range(0, count, size):
        batch = images[start : start + size]
        filled = jnp.pad(batch, ((0, size - len(batch)), (0, 0), (0, 0), (0, 0)))
        parts.append(_classify(model, params, filled))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[:count], *parts)


@functools.partial(jax.jit, static_argnums=0)
def _classify(model, params, images):
    prediction = model.apply(params, images)
    lengths, classes = jax.lax.top_k(prediction.scores, 2)
    return Classification(
        scores=prediction.scores,
        classes=classes[:, 0],
        lengths=lengths[:, 0],
        runner_up=classes[:, 1],
        runner_up_lengths=lengths[:, 1],
        reconstruction=prediction.reconstruction,
    )
