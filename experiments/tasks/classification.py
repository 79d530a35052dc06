"""Classification of single images: the task of mnist and svhn."""

from collections.abc import Callable

import jax
import numpy as np

from capsjax import functional, objectives
from capsjax.models import CapsNetConfig
from capsjax.models import Config as ModelConfig
from experiments.config import Config, UserError
from experiments.data.augment import SHIFTING, Preprocessing, random_shifts
from experiments.data.batching import image_source
from experiments.data.datasets import Dataset
from experiments.tasks.base import InputPipeline, Objective, Task
from experiments.tasks.figures import of_decoder


def image_pipeline(
    preprocess: Callable[[Config], Preprocessing],
) -> Callable[[Config, Dataset], InputPipeline]:
    """Returns a function that builds the input pipeline for single labelled images.

    Args:
      preprocess: ``(config) -> Preprocessing``.
    """

    def pipeline(config, dataset):
        train, evaluate = preprocess(config)

        def example(key, source, row):
            return train(key, source.images[row]), source.labels[row]

        def held_out(split):
            return getattr(dataset, f"{split}_images"), getattr(dataset, f"{split}_labels")

        raw = jax.ShapeDtypeStruct(dataset.image_shape, np.uint8)
        try:
            shape = jax.eval_shape(evaluate, raw).shape
        except ValueError as error:
            raise UserError(f"--dataset={dataset.name}: {error}") from error
        source = image_source(dataset.train_images, dataset.train_labels, config.batch_size)
        return InputPipeline(shape, source, example, held_out, evaluate, steps=evaluate.steps)

    return pipeline


def has_logits(model_config: ModelConfig) -> bool:
    """Returns whether the scores of a network are logits; otherwise they lie in [0, 1]."""
    capsules = isinstance(model_config, CapsNetConfig)
    return not capsules or model_config.make_routing().traits.scores_are_logits


def classify(config: Config, model_config: ModelConfig) -> Objective:
    """Returns a network that gives each image one class, with the loss of its kind.

    Raises:
      UserError: the loss does not fit the routing.
    """
    model = functional.create_model(model_config)

    def make_loss(**options):
        if not isinstance(model_config, CapsNetConfig):
            return objectives.cross_entropy_loss(model, **options)
        return objectives.capsnet_loss(
            model,
            loss=config.loss,
            logit=has_logits(model_config),
            margin_weight=config.margin_weight,
            reconstruction_weight=config.reconstruction_weight,
            **options,
        )

    try:
        loss = make_loss(label_smoothing=config.label_smoothing)
        return Objective(model, loss, make_loss(predictions=True))
    except ValueError as error:
        raise UserError(f"--loss={config.loss}: {error}") from error


def check_shift(config: Config, usual: int) -> None:
    """Refuses ``--max_shift`` where images are not shifted.

    Args:
      config: of the run.
      usual: the default of its program, which says nothing; nor does 0.

    Raises:
      UserError: another shift is given.
    """
    if config.augmentation not in SHIFTING and config.max_shift not in (0, usual):
        raise UserError(
            f"--max_shift={config.max_shift} has no effect with "
            f"--augmentation={config.augmentation}, but with {', '.join(SHIFTING)}"
        )


def _shifts(config: Config) -> Preprocessing:
    check_shift(config, Config.max_shift)
    return random_shifts(config.max_shift, config.augmentation)


CLASSIFICATION = Task(
    image_pipeline(_shifts),
    classify,
    figures=of_decoder,
)
