"""What a program adds to the training loop that all share. The defaults are those of mnist."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from capsjax import functional, objectives
from capsjax.models import Config as ModelConfig
from experiments.config import Config
from experiments.data.datasets import Dataset
from experiments.tasks.figures import Picture, of_decoder


class InputPipeline(NamedTuple):
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
    """A network and its losses, functions such as those of :mod:`capsjax.objectives`."""

    model: functional.Model
    loss: objectives.LossFn
    measure: objectives.LossFn  # in evaluation, of which the losses are left alone


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
        :data:`experiments.tasks.figures.Picture`.
    """

    stream: Callable[[Config, Dataset], InputPipeline]
    objective: Callable[[Config, ModelConfig], Objective]
    fields: Callable[..., dict] = lambda setup, values: {}
    further: Callable[..., dict] = lambda setup, evaluate, rows: {}
    enough: Callable[[Config, list[dict]], bool] = lambda config, rows: False
    pictures: Callable[..., Iterable[Picture]] = of_decoder


class Setup(NamedTuple):
    """What follows from a configuration before anything is trained."""

    config: Config  # resolved
    task: Task
    dataset: Dataset
    stream: InputPipeline
    devices: list
    model_config: ModelConfig
    model: functional.Model
    loss: objectives.LossFn
    measure: objectives.LossFn
    optimizer: object
    parameters: int


class Program(NamedTuple):
    """What a module of a program holds."""

    defaults: "Config"
    task: "Task"
