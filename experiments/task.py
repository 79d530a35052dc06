"""What a program adds to the training loop that all share. The defaults are those of mnist."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from capsjax import functional, train
from capsjax.models import CapsNetConfig
from capsjax.models import Config as ModelConfig
from experiments.config import Config
from experiments.data import Dataset
from experiments.errors import UserError
from experiments.pictures import Picture, of_decoder
from experiments.preprocess import Preprocess, shifted
from experiments.sampling import Source


class Stream(NamedTuple):
    """Examples of a data set, as functions of one example that are batched by vmap inside jit.

    A network's input is float32 of the given shape. What the loss takes for a label may be any
    pytree.
    """

    shape: tuple[int, int, int]  # of an input
    source: Any  # pytree of arrays that training keeps on the device
    example: Callable[..., tuple]  # (key, source, row) -> (input, label), in training
    # "train", "validation" or "test" -> raw examples, always the same: uint8 [N, ...], int32
    held_out: Callable[[str], tuple[np.ndarray, np.ndarray]]
    input: Callable[..., jax.Array]  # of a raw example's pixels
    label: Callable[..., Any] = lambda pixels, label: label  # of a raw example


class Objective(NamedTuple):
    """A network and what is asked of it; the functions are as those of :mod:`capsjax.train`."""

    model: functional.Model
    loss: train.LossFn
    measure: train.LossFn  # in evaluation, of which the losses are left alone


@dataclasses.dataclass(frozen=True)
class Task:
    """A program's part: data, network and loss, and what its report says.

    Attributes:
      stream: of a (resolved) configuration and a data set.
      objective: of a (resolved) configuration and the network that it describes.
      fields: more of summary.json, of ``(setup, values)``, values being what ``measure`` gives
        over the test set, arrays ``[N]``.
      further: still more, of ``(setup, evaluate, rows)``: the trained network on other examples,
        ``evaluate(pixels, labels)``, and the rows of metrics.jsonl.
      enough: whether training ends here, of the configuration and the rows of metrics.jsonl;
        asked after each validation.
      pictures: of a trained network with decoder, of ``(setup, params, values)``; see
        :data:`experiments.pictures.Picture`.
    """

    stream: Callable[[Config, Dataset], Stream]
    objective: Callable[[Config, ModelConfig], Objective]
    fields: Callable[..., dict] = lambda setup, values: {}
    further: Callable[..., dict] = lambda setup, evaluate, rows: {}
    enough: Callable[[Config, list[dict]], bool] = lambda config, rows: False
    pictures: Callable[..., Iterable[Picture]] = of_decoder


def images(preprocess: Callable[[Config], Preprocess]) -> Callable[[Config, Dataset], Stream]:
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
        return Stream(shape, source, example, held_out, evaluate)

    return stream


def classify(config: Config, model_config: ModelConfig) -> Objective:
    """One class an image: the losses of :func:`capsjax.train.capsnet_loss`, or of a CNN.

    Raises:
      UserError: the loss does not fit the routing.
    """
    model = functional.create(model_config)
    if not isinstance(model_config, CapsNetConfig):
        loss = train.cross_entropy_loss(model)
        return Objective(model, loss, loss)
    try:
        loss = train.capsnet_loss(
            model,
            loss=config.loss,
            logit=model_config.make_routing().logit,
            margin_weight=config.margin_weight,
            reconstruction_weight=config.reconstruction_weight,
        )
    except ValueError as error:
        raise UserError(f"--loss={config.loss}: {error}") from error
    return Objective(model, loss, loss)


CLASSIFICATION = Task(images(lambda config: shifted(config.max_shift)), classify)
