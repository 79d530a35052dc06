"""The objective of a run: that of its task, with ``--class_weights``, or that of sets of labels."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from capsjax.models import Config as ModelConfig
from experiments.config import Config, UserError
from experiments.data.datasets import Dataset
from experiments.tasks import label_sets
from experiments.tasks.base import Objective, Task


def balanced_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    r"""Returns the weight of each class, float32 ``[J]``, so that all classes count alike.

    .. math:: w_j = \frac{N}{K N_j}

    with N images, N_j of class j and K classes that have any. The mean weight of an image is one.
    Classes without images have weight zero.

    Args:
      labels: of the training data, ``[N]``.
      num_classes: J.
    """
    counts = np.bincount(labels, minlength=num_classes)
    weights = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return np.float32(np.where(counts, weights, 0))


def make_objective(
    task: Task, config: Config, model_config: ModelConfig, dataset: Dataset
) -> Objective:
    """Returns the objective of a task, with weighted losses in training if a flag says so.

    The loss of an example, with its reconstruction, is multiplied by the weight of its class. What
    evaluation measures is not weighted.

    Raises:
      UserError: see the objective of the task and that of sets of labels.
    """
    if dataset.multi_label:
        return label_sets.objective(config, model_config)
    objective = task.objective(config, model_config)
    if config.class_weights == "none":
        return objective
    if not len(dataset.train_labels):  # a saved run, opened without its data
        return objective
    weights = balanced_weights(dataset.train_labels, dataset.num_classes)

    def loss(variables, images, labels, *rest, **mode):
        losses, metrics, *state = objective.loss(variables, images, labels, *rest, **mode)
        losses = losses * jnp.asarray(weights)[labels]
        return losses, metrics | {"loss": losses}, *state

    return objective._replace(loss=loss)


def check_balance(config: Config, dataset: Dataset) -> None:
    """Refuses to balance classes twice, or where an image has no single class.

    Raises:
      UserError: as said.
    """
    if config.class_weights != "none" and config.sampler == "balanced":
        raise UserError(
            "--class_weights=balanced and --sampler=balanced: rare classes would count twice over; "
            "give one of them"
        )
    if not dataset.multi_label:
        return
    for field in dataclasses.fields(config):
        if field.name in ("class_weights", "sampler"):
            if getattr(config, field.name) != field.default:
                raise UserError(
                    f"--{field.name} needs images of one class each, and those of "
                    f"{dataset.name} have sets of labels"
                )
