"""Classification of image files by the network of a saved run."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import capsjax
from experiments.analysis.saved_run import SavedRun
from experiments.config import UserError
from experiments.data import image_files

BATCH = 64
CONFIDENT = 0.5  # a class with at least this score is present
CENTRED = ("mnist",)  # data sets whose images were made as image_files.centre makes them
FIGURE_SIDE = 200  # pixels of a side of an image in the figure


class PreparedImage(NamedTuple):
    """An image file, and the example that is made from it."""

    file: Path
    image: np.ndarray  # [h, w, 1 or 3] in 0..1, small
    pixels: np.ndarray  # uint8 [H, W, C], as an example of the data set
    inverted: bool
    fit: str  # pad or digit


class Classification(NamedTuple):
    """The two classes of an image with the highest scores, in this order."""

    names: tuple[str, str]
    scores: tuple[float, float]
    input: np.ndarray  # [H, W, C] of the network, in 0..1
    reconstruction: np.ndarray | None  # [H, W, C], of the first class

    @property
    def confident(self) -> bool:
        """Whether the first class is present."""
        return self.scores[0] >= CONFIDENT


def score_name(model_config: capsjax.CapsNetConfig | capsjax.CNNConfig) -> str:
    """Returns what the scores of a network are: length, activation, or probability."""
    if not isinstance(model_config, capsjax.CapsNetConfig):
        return "probability"
    routing = model_config.make_routing()
    if routing.traits.scores_are_logits:
        return "probability"
    return "length" if routing.traits.squash_primary else "activation"


def prepare_images(
    run: SavedRun, files: Iterable[Path], invert: str, fit: str
) -> list[PreparedImage]:
    """Reads files and makes an example like those of the data set from each.

    Files that can't be read are named on standard error and skipped.

    Args:
      run: whose network will classify them.
      files: of images.
      invert: yes, no, or auto, see :func:`experiments.data.image_files.is_negative`.
      fit: pad, digit (:func:`experiments.data.image_files.pad` and ``centre``), or auto.

    Raises:
      UserError: the run was trained on neither grey nor RGB images.
    """
    *shape, channels = run.facts["image_shape"]
    if len(shape) != 2 or channels not in (1, 3):
        raise UserError(f"{run.folder} was trained on {channels} channels, image files have 1 or 3")
    prepared = []
    for file in files:
        try:
            image = image_files.read(file)
        except image_files.UnreadableImage as error:
            print(f"{file}: {error}", file=sys.stderr)
            continue
        pixels = image_files.with_channels(image, channels)
        inverted = invert == "yes"
        if invert == "auto":
            inverted = image_files.is_negative(pixels, run.facts["border"])
        pixels = 1 - pixels if inverted else pixels
        digit = fit == "digit"
        if fit == "auto":
            name = run.setup.config.dataset.split(":")[0]
            digit = name in CENTRED and list(pixels.shape[:2]) != shape
        pixels = (image_files.centre_digit if digit else image_files.pad)(pixels, shape)
        pixels = np.uint8(np.rint(255 * pixels))
        image = image_files.with_channels(image, 1 if image.ndim == 2 else 3)
        small = image_files.resize(image, min(1, FIGURE_SIDE / max(image.shape)))
        prepared.append(PreparedImage(file, small, pixels, inverted, "digit" if digit else "pad"))
    return prepared


def classify(run: SavedRun, images: list[PreparedImage]) -> list[Classification]:
    """Classifies images by the network of a run."""
    if not images:
        return []
    pixels = np.stack([image.pixels for image in images])
    inputs = jax.jit(jax.vmap(run.setup.pipeline.input))(pixels)
    output = capsjax.classify(run.setup.model, run.variables, inputs, batch_size=BATCH)
    scores = output.scores
    if score_name(run.setup.model_config) == "probability":
        scores = jax.nn.softmax(scores)
    best = jnp.stack([output.classes, output.runner_up], axis=1)
    scores = jnp.take_along_axis(scores, best, axis=1)
    inputs, best, scores, reconstruction = jax.device_get(
        (inputs, best, scores, output.reconstruction)
    )
    names = run.facts["class_names"]
    return [
        Classification(
            (names[best[k, 0]], names[best[k, 1]]),
            (float(scores[k, 0]), float(scores[k, 1])),
            inputs[k],
            None if reconstruction is None else reconstruction[k],
        )
        for k in range(len(images))
    ]
