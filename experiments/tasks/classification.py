"""Classification of single images."""

from collections.abc import Callable

import jax
import numpy as np

from capsjax import functional, train
from capsjax.models import CapsNetConfig
from capsjax.models import Config as ModelConfig
from experiments.config import Config, UserError
from experiments.data.augment import Preprocess, shifted
from experiments.data.batching import Source
from experiments.data.datasets import Dataset
from experiments.tasks.base import InputPipeline, Objective, Task


def image_pipeline(
    preprocess: Callable[[Config], Preprocess],
) -> Callable[[Config, Dataset], InputPipeline]:
    """A stream of single images with a label.

    Args:
      preprocess: of a configuration.
    """

    def stream(config, dataset):
        train, evaluate = preprocess(config)

        def example(key, source, row):
            return train(key, source.images[row]), source.labels[row]

        def held_out(split):
            return getattr(dataset, f"{split}_images"), getattr(dataset, f"{split}_labels")

        raw = jax.ShapeDtypeStruct(dataset.image_shape, np.uint8)
        shape = jax.eval_shape(evaluate, raw).shape
        source = Source(dataset.train_images, dataset.train_labels)
        return InputPipeline(shape, source, example, held_out, evaluate)

    return stream


def classify(config: Config, model_config: ModelConfig) -> Objective:
    """One class an image: the losses of :func:`capsjax.train.capsnet_loss`, or of a CNN.

    Raises:
      UserError: the loss does not fit the routing.
    """
    model = functional.create_model(model_config)
    if not isinstance(model_config, CapsNetConfig):
        loss = train.cross_entropy_loss(model)
        return Objective(model, loss, loss)
    try:
        loss = train.capsnet_loss(
            model,
            loss=config.loss,
            logit=model_config.make_routing().traits.scores_are_logits,
            margin_weight=config.margin_weight,
            reconstruction_weight=config.reconstruction_weight,
        )
    except ValueError as error:
        raise UserError(f"--loss={config.loss}: {error}") from error
    return Objective(model, loss, loss)


CLASSIFICATION = Task(image_pipeline(lambda config: shifted(config.max_shift)), classify)
