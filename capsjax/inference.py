"""Classification of images by a trained network."""

import functools
from typing import Any, NamedTuple

import chex
import jax

from capsjax.batches import map_batches
from capsjax.functional import Model
from capsjax.preprocessing import check_pixels


class Classification(NamedTuple):
    """The results of a network for N images."""

    scores: jax.Array  # [N, J] lengths of the class capsules, or logits, depending on the network
    classes: jax.Array  # [N] int32, the class of the largest score
    lengths: jax.Array  # [N] the largest score
    runner_up: jax.Array  # [N] int32, the class of the second largest score
    runner_up_lengths: jax.Array  # [N] the second largest score
    # [N, H, W, C] in [0, 1], decoded from the capsule of `classes`; None without a decoder
    reconstruction: jax.Array | None


def classify(
    model: Model, params: Any, images: chex.Array, *, batch_size: int = 128
) -> Classification:
    """Find the class of each image, the second choice, and the reconstruction from the first.

    The network is compiled once for each model and batch size. This is a pure function, which may
    itself be called under ``jax.jit``.

    Args:
      model: a network of two classes or more, see :func:`capsjax.create_model`.
      params: the parameters of the model, or its :class:`capsjax.Variables`.
      images: ``[N, H, W, C]``, floats in [0, 1], N at least 1.
      batch_size: the largest number of images that are computed together.

    Raises:
      ValueError: there are no images, or the network has a single class.
      TypeError: the pixels are not floats.
      AssertionError: the images do not have four axes.

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
    check_pixels(images)
    if not len(images):
        raise ValueError("no images")
    size = min(batch_size, len(images))
    return map_batches(lambda batch, count: _classify(model, params, batch), images, size)


@functools.partial(jax.jit, static_argnums=0)
def _classify(model, params, images):
    prediction = model.apply(params, images)
    if prediction.scores.shape[1] < 2:
        raise ValueError("a network of a single class has no second choice: use model.apply")
    lengths, classes = jax.lax.top_k(prediction.scores, 2)
    return Classification(
        scores=prediction.scores,
        classes=classes[:, 0],
        lengths=lengths[:, 0],
        runner_up=classes[:, 1],
        runner_up_lengths=lengths[:, 1],
        reconstruction=prediction.reconstruction,
    )
