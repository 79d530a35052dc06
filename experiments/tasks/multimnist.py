"""MultiMNIST: the task of networks that see two overlapping digits."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from capsjax import functional
from capsjax.losses import reconstruction_loss
from capsjax.masks import label_mask
from capsjax.models import CapsNetConfig
from capsjax.models import Config as ModelConfig
from capsjax.objectives import score_loss
from capsjax.preprocessing import to_unit
from capsjax.recipes import margin_factor
from experiments.config import Config, UserError, setting
from experiments.data import distortions
from experiments.data.datasets import Dataset
from experiments.data.digit_pairs import (
    MARGIN,
    box_overlap,
    fixed_pairs,
    make_pair_source,
    overlay_digits,
    pair_target,
    random_pair,
)
from experiments.data.npz import SPLITS
from experiments.tasks.base import InputPipeline, Objective, Task
from experiments.tasks.multimnist_report import of_pairs, summary_fields

INK = 0.5  # brightness above which a pixel is ink
# Scores in [0, 1] that cost nothing under the losses of a single class; a logit is far below.
ABSENT_SCORES = {"spread": -1.0, "cross_entropy": 0.0}
ABSENT_LOGIT = -1e9


@dataclasses.dataclass(frozen=True)
class MultiMNISTConfig(Config):
    """Settings with flags for pairs and without those for single images."""

    max_shift: int = dataclasses.field(default=0, metadata={"flag": False})
    class_weights: str = dataclasses.field(default="none", metadata={"flag": False})
    sampler: str = dataclasses.field(default="uniform", metadata={"flag": False})
    shift: int = setting(4, "largest shift of each digit, in pixels", low=0, high=2 * MARGIN)
    test_pairs: int = setting(0, "number of test pairs; 0: as many as test digits", low=0)


def pair_pipeline(config: MultiMNISTConfig, dataset: Dataset) -> InputPipeline:
    """Returns the pipeline of pairs of a data set.

    Raises:
      UserError: no pairs can be made of its images, or digits are to be mirrored.
    """
    if dataset.multi_label:
        raise UserError("pairs are made of images of one class each, not of sets of labels")
    height, width, channels = dataset.image_shape
    shape = (height + 2 * MARGIN, width + 2 * MARGIN, channels)

    def source(split):
        arrays = (getattr(dataset, f"{split}_{part}") for part in ("images", "labels"))
        return make_pair_source(*arrays, dataset.num_classes)

    for split in SPLITS:  # those of evaluation, too, before training
        if len(set(getattr(dataset, f"{split}_labels").tolist())) == 1:
            cure = "; raise --train_examples" if split == "train" and config.train_examples else ""
            raise UserError(f"pairs need {split} images of two classes, and all are of one{cure}")
    if config.augmentation == "flip":
        raise UserError("--augmentation=flip: mirrored digits are others, use affine or strong")
    shift = 0 if config.augmentation == "none" else config.shift
    distortion = distortions.of_bytes(config.augmentation)

    def example(key, source, row):
        digits, labels = random_pair(key, source, row, shift, distortion)
        return overlay_digits(digits), pair_target(digits, labels)

    @functools.cache
    def held_out(split):
        count = len(getattr(dataset, f"{split}_labels"))
        if not count:
            return np.empty((0, 2, *shape), np.uint8), np.empty((0, 2), np.int32)
        if split == "test" and config.test_pairs:
            count = config.test_pairs
        return fixed_pairs(source(split), count, config.shift)

    # A saved run is opened without its digits.
    digits = source("train") if len(dataset.train_labels) else None
    return InputPipeline(
        shape, digits, example, held_out, overlay_digits, pair_target, labels=2, from_image=to_unit
    )


def pair_objective(config: MultiMNISTConfig, model_config: ModelConfig) -> Objective:
    r"""Returns the objective of two digits in an image: one loss of scores, two reconstructions.

    .. math::
       \alpha L(a, T) + \beta \sum_{t} \sum (digit_t - reconstruction_t)^2

    T is one for both classes. L is the margin loss with this T; for a CNN it is the sigmoid
    cross-entropy of all classes; for routings with another loss it is the sum of that loss of
    each digit among the classes that are not in the image. The decoder reconstructs one digit at a
    time, from the capsule of its label alone, and is compared with that digit alone.

    The losses take a :class:`~experiments.data.digit_pairs.Pair` for labels. Metrics are ``[B]``:
    those of :func:`capsjax.objectives.capsnet_loss`, where accuracy is one if both digits have the
    two largest scores; ``digits``, the share of the two digits that have, and ``either``. In
    evaluation there are also those of :func:`segmentation`, and ``overlap``.

    Raises:
      UserError: the loss does not fit the routing, or labels are to be smoothed.
    """
    if config.label_smoothing:
        raise UserError("--label_smoothing needs one class per image, and multimnist has two")
    model = functional.create_model(model_config)
    capsules = isinstance(model_config, CapsNetConfig)
    name = config.loss if capsules else "cross_entropy"
    logit = not capsules or model_config.make_routing().traits.scores_are_logits
    if logit and name != "cross_entropy":
        raise UserError(
            f"--loss={name}: the scores of {config.routing} are logits, use cross_entropy"
        )
    one_loss = score_loss(name, logit=logit)

    def scores_and_digits(variables, images, labels, key, mode):
        if not capsules:
            out, *state = functional.outputs(model, variables, images, None, key, **mode)
            return out.scores, None, state
        out, *state = functional.outputs(model, variables, images, method="encode", **mode)
        drawn = None
        if model_config.decoder is not None:
            drawn = decode_each(model, variables, out.pose, labels)
        return out.activation, drawn, state

    def of_scores(scores, labels, progress):
        present = jnp.sum(jax.vmap(label_mask, (0, None))(labels, scores.shape[0]), axis=0)
        if not capsules:
            return jnp.sum(optax.sigmoid_binary_cross_entropy(scores, present))
        if name not in ABSENT_SCORES:
            return one_loss(scores, present, progress)
        absent = ABSENT_LOGIT if logit else ABSENT_SCORES[name]
        total = jnp.zeros(())
        for label, other in (labels, labels[::-1]):
            alone, mask = scores.at[other].set(absent), label_mask(label, scores.shape[0])
            total += one_loss(alone, mask, progress)
        return total

    def loss(variables, images, pair, key=None, progress=1.0, *, measured=False, **mode):
        scores, drawn, state = scores_and_digits(variables, images, pair.labels, key, mode)
        margin = jax.vmap(of_scores, (0, 0, None))(scores, pair.labels, progress)
        found = jax.vmap(hits)(scores, pair.labels)
        metrics = {"digits": found / 2, "either": jnp.minimum(found, 1.0)}
        metrics["accuracy"] = (found == 2).astype(jnp.float32)
        metrics[f"{name}_loss"] = margin
        weight = margin_factor(config.margin_weight, classes=scores.shape[1])
        total = weight * margin if capsules else margin
        if drawn is not None:
            error = jax.vmap(reconstruction_loss)(drawn, pair.digits)
            metrics["reconstruction_loss"] = error
            total += config.reconstruction_weight * error
            if measured:
                metrics |= jax.vmap(segmentation)(drawn, pair.digits)
        if measured:
            metrics["overlap"] = jax.vmap(box_overlap)(pair.digits)
            each = jax.vmap(found_labels)(scores, pair.labels)
            metrics |= {"found_first": each[:, 0], "found_second": each[:, 1]}
        return total, metrics | {"loss": total}, *state

    return Objective(model, loss, functools.partial(loss, measured=True))


def decode_each(
    model: functional.Model, variables: Any, pose: jax.Array, labels: jax.Array
) -> jax.Array:
    """Returns images ``[B, T, h, w, c]``, each from the capsule of one label alone.

    Args:
      model: CapsNet with its variables. pose: ``[B, J, D]``. labels: ``[B, T]``.
    """
    (B, J, _), T = pose.shape, labels.shape[1]
    masks = label_mask(labels.reshape(-1), J)
    images = model.apply(variables, jnp.repeat(pose, T, axis=0), masks, method="decode")
    return images.reshape(B, T, *images.shape[1:])


def found_labels(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns which of the two labels ``[2]`` are among the two largest of the scores ``[J]``."""
    _, largest = jax.lax.top_k(scores, 2)
    return jnp.any(largest[:, None] == labels[None, :], axis=0)


def hits(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """Counts which of the two labels ``[2]`` are among the two largest of the scores ``[J]``."""
    _, largest = jax.lax.top_k(scores, 2)
    return jnp.sum(largest[:, None] == labels[None, :]).astype(jnp.float32)


def segmentation(drawn: jax.Array, digits: jax.Array) -> dict[str, jax.Array]:
    """Counts the pixels that the two reconstructions assign to the right digit, for one example.

    Args:
      drawn, digits: ``[2, h, w, c]`` in [0, 1], in the same order.

    Returns:
      Counts: ``single_pixels``, with ink of exactly one digit, and ``single_right``, those
      among them where the reconstruction of that digit is the brighter one; ``shared_pixels``,
      with ink of both, and ``shared_right``, where both reconstructions have ink. And
      ``squared_error``, the mean over both digits and all pixels.
    """
    ink = digits > INK
    single, shared = ink[0] != ink[1], ink[0] & ink[1]
    right = jnp.where(ink[0], drawn[0] > drawn[1], drawn[1] > drawn[0])
    both = jnp.all(drawn > INK, axis=0)
    counts = {
        "single_pixels": single,
        "single_right": single & right,
        "shared_pixels": shared,
        "shared_right": shared & both,
    }
    values = {name: jnp.sum(where).astype(jnp.float32) for name, where in counts.items()}
    return values | {"squared_error": jnp.mean(jnp.square(drawn - digits))}


MULTIMNIST = Task(pair_pipeline, pair_objective, summary_fields, figures=of_pairs)
