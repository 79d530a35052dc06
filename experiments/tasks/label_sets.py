"""Images with any number of labels: the margin loss as it is, and what is measured."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from capsjax import functional
from capsjax.losses import margin_loss, reconstruction_loss
from capsjax.models import CapsNetConfig
from capsjax.models import Config as ModelConfig
from capsjax.recipes import margin_factor
from experiments.config import Config, UserError
from experiments.tasks.base import Objective, Setup
from experiments.tasks.classification import has_logits

PRESENT = 0.5  # length or probability from which a class is taken as present


def objective(config: Config, model_config: ModelConfig) -> Objective:
    r"""Returns the objective of images with sets of labels, ``[B, J]`` of zeros and ones.

    .. math::
       L = \alpha \sum_k T_k \max(0, m^+ - \|v_k\|)^2 + \lambda (1 - T_k) \max(0, \|v_k\| - m^-)^2
           + \beta \sum (image - reconstruction)^2

    It is equation 4 of Sabour, Frosst & Hinton (2017), which admits any number of present classes;
    the decoder sees the capsules of all of them. The loss of a CNN is the sigmoid cross-entropy.

    Metrics are ``[B]``: ``accuracy`` is one where exactly the labels have a score of
    :data:`PRESENT`, ``label_accuracy`` is the share of classes of which this is true. In evaluation
    there are also the scores, ``score_0`` to ``score_{J-1}``.

    Raises:
      UserError: the network has another loss than the margin loss, its scores are logits, it is an
        ensemble, or labels are to be smoothed.
    """
    model = functional.create_model(model_config)
    capsules = isinstance(model_config, CapsNetConfig)
    if capsules and config.loss != "margin":
        raise UserError(
            f"--loss={config.loss} needs images of one class each, and these have sets of labels; "
            "choose --loss=margin and a routing whose scores are lengths, such as dynamic"
        )
    if capsules and has_logits(model_config):
        raise UserError(
            f"--preset={config.preset} with --routing={config.routing} has logits as scores, and "
            "sets of labels need lengths or activations: choose a routing such as dynamic, with "
            "another preset"
        )
    if config.label_smoothing:
        raise UserError("--label_smoothing needs images of one class each, not sets of labels")
    if getattr(config, "ensemble", 1) > 1:
        raise UserError("--ensemble needs images of one class each, and these have sets of labels")

    def loss(variables, images, labels, key=None, progress=1.0, *, measured=False, **mode):
        targets = labels.astype(jnp.float32)
        if capsules:
            out, *state = functional.outputs(model, variables, images, method="encode", **mode)
            scores = out.activation
            losses = jax.vmap(margin_loss)(scores, targets)
            metrics = {"margin_loss": losses}
            total = margin_factor(config.margin_weight, classes=scores.shape[1]) * losses
        else:
            out, *state = functional.outputs(model, variables, images, None, key, **mode)
            scores = jax.nn.sigmoid(out.scores)
            total = jnp.sum(optax.sigmoid_binary_cross_entropy(out.scores, targets), axis=1)
            metrics = {}
        if getattr(model_config, "decoder", None) is not None:
            drawn = model.apply(variables, out.pose, targets, method="decode")
            metrics["reconstruction_loss"] = jax.vmap(reconstruction_loss)(drawn, images)
            total += config.reconstruction_weight * metrics["reconstruction_loss"]
        right = ((scores >= PRESENT) == (targets > 0)).astype(jnp.float32)
        metrics |= {"accuracy": jnp.min(right, axis=1), "label_accuracy": jnp.mean(right, axis=1)}
        if measured:
            metrics |= {f"score_{k}": scores[:, k] for k in range(scores.shape[1])}
        return total, metrics | {"loss": total}, *state

    return Objective(model, loss, functools.partial(loss, measured=True))


def average_precision(targets: np.ndarray, scores: np.ndarray) -> float | None:
    r"""Returns the average precision of one class, None if no image has it.

    .. math:: AP = \sum_n (R_n - R_{n-1}) P_n

    over the thresholds n at the different scores, from the largest, with recall R and precision P.

    Args:
      targets: zeros and ones ``[N]``.
      scores: ``[N]``.
    """
    if not targets.any():
        return None
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    found = np.cumsum(np.float64(targets[order]))[ends]
    return float(np.sum(np.diff(found, prepend=0) * found / (ends + 1)) / targets.sum())


def scores_of(values: dict[str, np.ndarray], classes: int) -> np.ndarray:
    """Returns the scores ``[N, J]`` among the metrics of an evaluation."""
    return np.stack([values[f"score_{k}"] for k in range(classes)], axis=1)


def summary_fields(setup: Setup, values: dict[str, np.ndarray]) -> dict:
    """Returns fields of summary.json: of each label, and the mean average precision.

    Args:
      setup: of the run.
      values: what the objective measures of the test set.
    """
    targets = setup.pipeline.held_out("test")[1]
    scores = scores_of(values, setup.dataset.num_classes)
    wrong = (scores >= PRESENT) != (targets > 0)
    precisions = [average_precision(t, s) for t, s in zip(targets.T, scores.T, strict=True)]
    known = [p for p in precisions if p is not None]
    labels = {
        name: {
            "images": int(targets[:, k].sum()),
            "missed": int((wrong[:, k] & (targets[:, k] > 0)).sum()),
            "false": int((wrong[:, k] & (targets[:, k] == 0)).sum()),
            "average_precision": None if p is None else round(p, 4),
        }
        for k, (name, p) in enumerate(zip(setup.dataset.class_names, precisions, strict=True))
    }
    return {
        "exact_match": round(100 * float(values["accuracy"].mean()), 4),
        "label_error": round(100 * float(wrong.mean()), 4),
        "mean_average_precision": round(float(np.mean(known)), 6) if known else None,
        "labels": labels,
    }
