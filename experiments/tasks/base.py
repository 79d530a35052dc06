"""What a command contributes to the shared training loop, and the objects a run is set up with."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from capsjax import functional, objectives
from capsjax.models import Config as ModelConfig
from experiments.config import Config
from experiments.data.datasets import Dataset

# The name of a figure, the function of experiments.plots, and what that takes after the path.
Figure = tuple[str, Callable, tuple]


class InputPipeline(NamedTuple):
    """Examples of a data set, as functions of one example that are batched by vmap inside jit.

    A network's input is float32 of the given shape. A label may be any pytree that the loss
    accepts.
    """

    shape: tuple[int, int, int]  # of an input
    source: Any  # pytree of arrays that training keeps on the device
    example: Callable[..., tuple]  # (key, source, row) -> (input, label), in training
    # "train", "validation" or "test" -> raw examples, always the same: uint8 [N, ...], int32
    held_out: Callable[[str], tuple[np.ndarray, np.ndarray]]
    input: Callable[..., jax.Array]  # of a raw example's pixels
    label: Callable[..., Any] = lambda pixels, label: label  # of a raw example
    labels: int = 1  # classes in an image
    # Of the pixels of a whole image of `shape`, where a raw example is something else.
    from_image: Callable[..., jax.Array] | None = None
    # The input of an image that is no training example, as capsjax.Preprocessing has it: of the
    # data set, or of `shape` where there is `from_image`.
    steps: tuple[tuple, ...] = (("unit",),)


class Objective(NamedTuple):
    """A network, its loss and its metrics, functions as in :mod:`capsjax.objectives`."""

    model: functional.Model
    loss: objectives.LossFn
    measure: objectives.LossFn  # in evaluation, where only its metrics are used


@dataclasses.dataclass(frozen=True)
class Task:
    """What a command trains on, optimizes and reports.

    Attributes:
      pipeline: ``(config, dataset) -> InputPipeline``; the configuration is resolved.
      objective: ``(config, model_config) -> Objective``.
      summary_fields: ``(setup, values) -> dict``, further fields of summary.json; values are
        what ``measure`` gives over the test set, arrays ``[N]``.
      extra_evaluation: ``(setup, evaluate, rows) -> dict``, still further fields, from the
        trained network on other examples, ``evaluate(pixels, labels)``, and from the rows of
        metrics.jsonl.
      should_stop: ``(config, rows) -> bool``, whether training ends here; asked after each
        validation.
      figures: ``(setup, variables, values) -> figures`` of a trained network with a decoder.
      summary_figures: ``(setup, summary) -> figures`` of what the summary says.
      report: ``(setup, summary) -> lines`` that are printed after the table of errors.
    """

    pipeline: Callable[[Config, Dataset], InputPipeline]
    objective: Callable[[Config, ModelConfig], Objective]
    summary_fields: Callable[..., dict] = lambda setup, values: {}
    extra_evaluation: Callable[..., dict] = lambda setup, evaluate, rows: {}
    should_stop: Callable[[Config, list[dict]], bool] = lambda config, rows: False
    figures: Callable[..., Iterable[Figure]] = lambda setup, variables, values: ()
    summary_figures: Callable[..., Iterable[Figure]] = lambda setup, summary: ()
    report: Callable[..., Iterable[str]] = lambda setup, summary: ()


class Program(NamedTuple):
    """A command that trains: the default values of its flags, and its task.

    It is listed in :mod:`experiments.tasks.registry`, so that saved runs and sweeps can find it.
    """

    defaults: Config
    task: Task


class Setup(NamedTuple):
    """Everything that follows from a configuration before training begins."""

    config: Config  # resolved
    program: Program
    dataset: Dataset
    pipeline: InputPipeline
    devices: list[jax.Device]
    model_config: ModelConfig
    model: functional.Model
    loss: objectives.LossFn
    measure: objectives.LossFn
    optimizer: optax.GradientTransformation
    parameters: int

    @property
    def task(self) -> Task:
        """The task of the program."""
        return self.program.task
