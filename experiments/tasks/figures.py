"""The figures of a run, computed from its network, its data and its metrics."""

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from capsjax import map_batches
from experiments import plots
from experiments.data.errors import first_line
from experiments.tasks import confusion, routing_diagnostics
from experiments.tasks.base import Figure, Setup

COLUMNS = 8  # correct examples in the figure of reconstructions
WRONG = 4  # wrong ones; each takes two columns
CHANGES = np.round(np.arange(-0.25, 0.2501, 0.05), 2)  # of one pose dimension, Figure 4
EXAMPLES = 128  # whose principal components are shown where there are many channels

Part = Callable[[], Iterable[Figure]]  # makes figures that succeed or fail together


def title_of(setup: Setup) -> str:
    """Returns network, data and seed of a run, for titles."""
    c = setup.config
    routing = f", {c.routing} routing" if c.routing else ""
    return f"{c.model}{routing} on {setup.dataset.name}, seed {c.seed}"


class Perturbed(NamedTuple):
    """A class capsule of an example, decoded with one dimension changed at a time.

    Dimensions come in the order of their effect: the mean, over the changes and the pixels, of
    the squared difference to what the unchanged capsule gives.
    """

    example: int  # of the test set
    label: int  # whose capsule
    dims: list[int]  # [D]
    effects: list[float]  # [D]
    images: np.ndarray  # [D, V, H, W, C]; V: CHANGES


def of_finished_run(setup: Setup, variables, rows: list, values: dict) -> list[Part]:
    """Returns what makes the figures at the end of a training run.

    Args:
      setup: of the run.
      variables: trained.
      rows: of metrics.jsonl.
      values: what the evaluation says of the test set, arrays ``[N]``.
    """
    parts = [lambda: of_training(setup, rows), lambda: of_confusion(setup, values)]
    if has_decoder(setup):
        parts.append(lambda: setup.task.figures(setup, variables, values))
    if setup.config.diagnostics and routing_diagnostics.can_trace(setup):
        parts.append(lambda: routing_diagnostics.figures(setup, variables, rows, title_of(setup)))
    return parts


def save_possible(parts: list[Part], folder: Path) -> tuple[list[Path], list[str]]:
    """Plots the figures of all parts, and goes on where one fails.

    Returns:
      The paths of the figures, and a line about each failure.
    """
    paths, failures = [], []
    for part in parts:
        name = "figures"
        try:
            for figure in part():
                name = f"figure {figure[0]}"
                paths += save([figure], folder)
                name = "figures"
        except Exception as error:  # a figure may fail in any way, and the run is complete
            failures.append(f"{name}: {type(error).__name__}: {first_line(error)}")
    return paths, failures


def save(figures: list[Figure], folder: Path, kinds: tuple[str, ...] = ("png",)) -> list[Path]:
    """Plots figures, each in all kinds (png, pdf), and returns their paths."""
    paths = []
    for name, function, arguments in figures:
        for kind in kinds:
            paths.append(folder / f"{name}.{kind}")
            function(paths[-1], *arguments)
    return paths


def of_training(setup: Setup, rows: list) -> Iterator[Figure]:
    """Yields the loss and error over epochs."""
    yield "training_curves", plots.plot_training_curves, (rows, title_of(setup))


def of_confusion(setup: Setup, values: dict) -> Iterator[Figure]:
    """Yields the confusion matrix of the test set, where each image has one class."""
    if "prediction" in values:
        names, labels = setup.dataset.class_names, setup.pipeline.held_out("test")[1]
        matrix = confusion.confusion_matrix(labels, values["prediction"], len(names))
        yield "confusion_matrix", plots.plot_confusion, (matrix, names, title_of(setup))


def has_decoder(setup: Setup) -> bool:
    """Returns whether the network reconstructs its input."""
    return getattr(setup.model_config, "decoder", None) is not None


def of_decoder(setup: Setup, variables, values: dict) -> Iterator[Figure]:
    """Yields Figures 3 and 4 of the paper, for classification into single classes."""
    if setup.dataset.multi_label:
        return
    correct = values["accuracy"] > 0
    columns = reconstruction_columns(setup, variables, correct)
    title = title_of(setup) + note_of(setup)
    arguments = (columns, setup.dataset.class_names, title)
    yield "reconstructions", plots.plot_reconstructions, arguments
    example = first_correct(correct)
    label = int(setup.pipeline.held_out("test")[1][example])
    yield of_class(setup, perturbed(setup, variables, example, label))


def of_class(setup: Setup, changed: Perturbed) -> Figure:
    """Returns Figure 4 of the paper."""
    name = setup.dataset.class_names[changed.label]
    title = f"{title_of(setup)}: class {name}, test image {changed.example}, and below each "
    title += f"dimension the mean squared change of a pixel{note_of(setup)}"
    images = drawable(setup)(changed.images)
    arguments = (images, CHANGES, changed.dims, title, changed.effects)
    return "perturbations", plots.plot_perturbations, arguments


class Encoded(NamedTuple):
    """Some test examples and their capsules."""

    images: np.ndarray  # [n, H, W, C] the network's input
    labels: np.ndarray  # [n]
    activation: np.ndarray  # [n, J]
    pose: np.ndarray  # [n, J, D]


def encode(setup: Setup, variables, rows: np.ndarray) -> Encoded:
    """Returns the test examples of some rows, 16 in a call of one compiled program."""
    raw, labels = setup.pipeline.held_out("test")

    def some(rows, _):
        return jax.device_get(_encode(setup.model, setup.pipeline.input, variables, raw[rows]))

    images, activation, pose = map_batches(some, rows, COLUMNS + 2 * WRONG)
    return Encoded(images, labels[rows], activation, pose)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(model, to_input, variables, raw):
    images = jax.vmap(to_input)(raw)
    capsules = model.apply(variables, images, method="encode")
    return images, capsules.activation, capsules.pose


def decode(setup: Setup, variables, pose: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns images ``[n, H, W, C]``, decoded from the capsules of classes ``[n]``."""
    return np.asarray(_decode(setup.model, variables, pose, labels))


@functools.partial(jax.jit, static_argnums=0)
def _decode(model, variables, pose, labels):
    mask = jax.nn.one_hot(labels, pose.shape[1])
    return model.apply(variables, pose, mask, method="decode")


def reconstruction_columns(setup: Setup, variables, correct: np.ndarray) -> list:
    """Returns Figure 3 of the paper: some correct test examples, then wrong ones twice.

    A wrong one is reconstructed from the capsule of its label and from that of the
    prediction.
    """
    right, wrong = np.flatnonzero(correct)[:COLUMNS], np.flatnonzero(~correct)[:WRONG]
    rows = np.concatenate([right, np.repeat(wrong, 2)])
    images, labels, activation, pose = encode(setup, variables, rows)
    predictions, targets = np.argmax(activation, axis=1), labels.copy()
    targets[len(right) + 1 :: 2] = predictions[len(right) + 1 :: 2]
    decoded = decode(setup, variables, pose, targets)
    shown = drawable(setup)
    fields = zip(shown(images), shown(decoded), labels, predictions, targets, strict=True)
    return [
        plots.ReconstructionColumn(image, drawn, int(label), int(prediction), int(target))
        for image, drawn, label, prediction, target in fields
    ]


def note_of(setup: Setup) -> str:
    """Returns what titles say of how the channels of a run are drawn."""
    return plots.note_of_channels(setup.pipeline.shape[-1])


def drawable(setup: Setup) -> Callable[[np.ndarray], np.ndarray]:
    """Returns how inputs and reconstructions are drawn, see :func:`experiments.plots.drawable`."""

    def examples():
        raw, _ = setup.pipeline.held_out("test")
        return np.asarray(jax.jit(jax.vmap(setup.pipeline.input))(raw[:EXAMPLES]))

    return plots.drawable(setup.pipeline.shape[-1], examples)


def first_correct(correct: np.ndarray, wanted: np.ndarray | bool = True) -> int:
    """Returns the first correct example among those wanted, or else the first wanted, or any."""
    return int(np.argmax(2 * wanted + (correct & wanted)))


def perturbed(setup: Setup, variables, example: int, label: int) -> Perturbed:
    """Decodes one pose with one dimension changed at a time, for Figure 4 of the paper.

    Args:
      setup, variables: of the run.
      example: number of a test example.
      label: class whose capsule is changed, not necessarily that of the example.
    """
    (pose,) = encode(setup, variables, np.array([example])).pose
    dims, values = pose.shape[1], len(CHANGES)
    changed = np.tile(pose, (dims, values, 1, 1))
    for dim in range(dims):
        changed[dim, :, label, dim] += CHANGES
    changed = changed.reshape(dims * values, *pose.shape)
    images = decode(setup, variables, changed, np.full(dims * values, label))
    images = images.reshape(dims, values, *images.shape[1:])
    differences = np.float64(images) - images[:, CHANGES == 0]
    effects = np.square(differences).mean(axis=(1, 2, 3, 4)) * values / (values - 1)
    order = np.argsort(-effects, kind="stable")
    return Perturbed(example, label, order.tolist(), effects[order].tolist(), images[order])
