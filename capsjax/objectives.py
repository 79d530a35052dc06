"""Objectives of training: losses of class scores by name, and losses of whole networks."""

import types
from collections.abc import Callable, Mapping

import chex
import jax
import jax.numpy as jnp
import optax

from capsjax.functional import Model, outputs
from capsjax.losses import (
    cross_entropy_of_lengths,
    cross_entropy_of_logits,
    margin_loss,
    reconstruction_loss,
    spread_loss,
    spread_margin,
)
from capsjax.masks import check_labels, label_mask
from capsjax.recipes import margin_factor
from capsjax.routing import check_choice

Metrics = dict[str, jax.Array]
LossFn = Callable[..., tuple[jax.Array, Metrics]]
ScoreLoss = Callable[[chex.Array, chex.Array, chex.Numeric], jax.Array]

# The losses of class scores by name: functions of scores [J], targets [J] and the fraction of
# training that is done, 1 if it is not given. LOSSES are for scores in [0, 1], LOGIT_LOSSES for
# logits.
LOSSES: Mapping[str, ScoreLoss] = types.MappingProxyType(
    {
        "margin": lambda lengths, targets, progress=1.0: margin_loss(lengths, targets),
        "spread": lambda lengths, targets, progress=1.0: spread_loss(
            lengths, targets, spread_margin(progress)
        ),
        "cross_entropy": lambda lengths, targets, progress=1.0: cross_entropy_of_lengths(
            lengths, targets
        ),
    }
)
LOGIT_LOSSES: Mapping[str, ScoreLoss] = types.MappingProxyType(
    {
        "cross_entropy": lambda logits, targets, progress=1.0: cross_entropy_of_logits(
            logits, targets
        )
    }
)


def score_loss(name: str, *, logit: bool = False) -> ScoreLoss:
    """Look up a loss of class scores, for one example.

    Args:
      name: a key of :data:`LOSSES`.
      logit: whether the scores are logits; otherwise they lie in [0, 1].

    Returns:
      ``loss(scores [J], targets [J], progress=1.0) -> scalar``, where ``progress`` is the fraction
      of training that is done, from 0 to 1. Only the margin of the spread loss depends on it.

    Raises:
      ValueError: the name is unknown, or the loss does not apply to logits.

    Example:
      >>> loss = score_loss("spread")
      >>> loss(jnp.array([0.75, 0.5]), jnp.array([1.0, 0.0]), 0.0).item()  # the margin is 0.2
      0.0
    """
    check_choice("loss", name, LOSSES)
    if logit and name not in LOGIT_LOSSES:
        legal = ", ".join(LOGIT_LOSSES)
        raise ValueError(f"loss {name!r} needs scores in [0, 1], not logits: use {legal}")
    return (LOGIT_LOSSES if logit else LOSSES)[name]


def capsnet_loss(
    model: Model,
    *,
    loss: str = "margin",
    logit: bool = False,
    margin_weight: float | str = 1.0,
    reconstruction_weight: float = 0.0005,
    label_smoothing: float = 0.0,
    predictions: bool = False,
) -> LossFn:
    r"""Make the loss of CapsNet.

    .. math:: L = \alpha L_{scores} + \beta \sum (image - reconstruction)^2

    The decoder sees the capsule of the label alone. Without a decoder the second term is absent.

    Args:
      model: the network.
      loss: name of the loss of the class scores, a key of :data:`LOSSES`.
      logit: whether the scores are logits.
      margin_weight: alpha, whichever loss it weights; or ``official``, see
        :func:`capsjax.recipes.margin_factor`.
      reconstruction_weight: beta.
      label_smoothing: the share of the target that all classes divide among them (Szegedy et al.
        2016), for ``cross_entropy`` alone.
      predictions: whether the metrics include the ``prediction``, the class with the largest score,
        and its ``confidence``, this score, or of logits its softmax.

    Returns:
      ``loss(variables, images, labels, key=None, progress=1, **mode) -> (losses [B], metrics)``,
      where ``progress`` is the fraction of training that is done. ``mode`` is handed to the
      network: with ``train=True`` the new statistics are a third result, see
      :func:`capsjax.from_module`. Every metric is ``[B]``: ``loss``,
      ``accuracy``, the loss of the scores (``margin_loss``, ``spread_loss`` or
      ``cross_entropy_loss``) and ``reconstruction_loss``, the last two unweighted. It raises
      ValueError for labels that are not integers ``[B]`` and, outside ``jax.jit``, for labels that
      are no class. Inside ``jax.jit`` their values are unknown: a label that is no class then has
      a target of zeros, or of its share of ``label_smoothing``, and is never counted as correct.

    Raises:
      ValueError: see :func:`score_loss`; ``margin_weight`` is another word; or labels of another
        loss than cross-entropy are to be smoothed.
    """
    loss_of_scores = score_loss(loss, logit=logit)
    if label_smoothing and loss != "cross_entropy":
        raise ValueError(f"labels of the loss {loss!r} can't be smoothed, only of cross_entropy")
    margin_factor(margin_weight, classes=1)  # refuses other words before the first step

    def loss_of_network(variables, images, labels, key=None, progress=1.0, **mode):
        check_labels(labels, images)
        prediction, *state = outputs(model, variables, images, labels, key, **mode)
        classes = prediction.scores.shape[1]
        check_labels(labels, images, classes)
        targets = _smoothed(label_mask(labels, classes), label_smoothing)
        losses = jax.vmap(loss_of_scores, (0, 0, None))(prediction.scores, targets, progress)
        metrics = {f"{loss}_loss": losses}
        total = margin_factor(margin_weight, classes=classes) * losses
        if prediction.reconstruction is not None:
            error = jax.vmap(reconstruction_loss)(prediction.reconstruction, images)
            metrics["reconstruction_loss"] = error
            total += reconstruction_weight * error
        metrics |= {"loss": total, "accuracy": _correct(prediction.scores, labels)}
        if predictions:
            metrics |= prediction_metrics(prediction.scores, logit)
        return total, metrics, *state

    return loss_of_network


def cross_entropy_loss(
    model: Model, *, label_smoothing: float = 0.0, predictions: bool = False
) -> LossFn:
    """Make the softmax cross-entropy of logits, the loss of the convolutional baselines.

    Args:
      model: the network.
      label_smoothing, predictions: see :func:`capsnet_loss`.

    Returns:
      A function like that of :func:`capsnet_loss`, with the metrics ``loss`` and ``accuracy``. It
      checks labels in the same way; inside ``jax.jit`` the loss of a label that is no class is NaN.
    """

    def loss(variables, images, labels, key=None, progress=1.0, **mode):
        check_labels(labels, images)
        prediction, *state = outputs(model, variables, images, labels, key, **mode)
        logits, J = prediction.scores, prediction.scores.shape[1]
        check_labels(labels, images, J)
        classes = labels.astype(jnp.int32)  # a narrow type may not hold J
        if label_smoothing:
            total = optax.softmax_cross_entropy(
                logits, _smoothed(label_mask(classes, J), label_smoothing)
            )
        else:
            total = optax.softmax_cross_entropy_with_integer_labels(logits, classes)
        total = jnp.where((classes >= 0) & (classes < J), total, jnp.nan)
        metrics = {"loss": total, "accuracy": _correct(logits, labels)}
        if predictions:
            metrics |= prediction_metrics(logits, True)
        return total, metrics, *state

    return loss


def prediction_metrics(scores: chex.Array, logit: bool) -> Metrics:
    """Compute ``prediction`` and ``confidence`` of :func:`capsnet_loss` from scores ``[B, J]``."""
    shares = jax.nn.softmax(scores) if logit else scores
    return {
        "prediction": jnp.argmax(scores, axis=1).astype(jnp.int32),
        "confidence": jnp.max(shares, axis=1),
    }


def _smoothed(targets, share):
    return optax.smooth_labels(targets, share) if share else targets


def _correct(scores, labels):
    return (jnp.argmax(scores, axis=1) == labels).astype(jnp.float32)
