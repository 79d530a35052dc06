"""Image files brought to a network, and what it says about them."""

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
CONFIDENT = 0.5  # a class is present whose capsule is at least so long
CENTRED = ("mnist",)  # data sets whose images were made as images.centre makes them
SHOWN = 200  # pixels of a side of an image in the picture


class Seen(NamedTuple):
    """An image file, and the example that is made of it."""

    file: Path
    image: np.ndarray  # [h, w, 1 or 3] in 0..1, small
    pixels: np.ndarray  # uint8 [H, W, C], as an example of the data set
    inverted: bool
    fit: str  # pad or digit


class Found(NamedTuple):
    """Two classes of an image, the likelier one first, and their scores."""

    names: tuple[str, str]
    scores: tuple[float, float]
    input: np.ndarray  # [H, W, C] of the network, in 0..1
    reconstruction: np.ndarray | None  # [H, W, C], of the first

    @property
    def confident(self) -> bool:
        """Whether any class is present."""
        return self.scores[0] >= CONFIDENT


def score_name(model_config: capsjax.CapsNetConfig | capsjax.CNNConfig) -> str:
    """What the scores of a network are: lengths of poses, activations, or once logits."""
    if not isinstance(model_config, capsjax.CapsNetConfig):
        return "probability"
    routing = model_config.make_routing()
    if routing.traits.scores_are_logits:
        return "probability"
    return "length" if routing.traits.squash_primary else "activation"


def look(run: SavedRun, files: Iterable[Path], invert: str, fit: str) -> list[Seen]:
    """Read files and make of each an example like those of the data set.

    Files that can't be read are named on standard error and left out.

    Args:
      run: whose network will see them. files: of images.
      invert: yes, no, or auto, see :func:`experiments.data.image_files.is_negative`.
      fit: pad, digit (:func:`experiments.data.image_files.pad` and ``centre``), or auto.

    Raises:
      UserError: its examples are neither grey nor RGB images.
    """
    *shape, channels = run.facts["image_shape"]
    if len(shape) != 2 or channels not in (1, 3):
        raise UserError(f"{run.folder} was trained on {channels} channels, image files have 1 or 3")
    seen = []
    for file in files:
        try:
            image = image_files.read(file)
        except image_files.Unreadable as error:
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
        pixels = (image_files.centre if digit else image_files.pad)(pixels, shape)
        pixels = np.uint8(np.rint(255 * pixels))
        image = image_files.with_channels(image, 1 if image.ndim == 2 else 3)
        small = image_files.resize(image, min(1, SHOWN / max(image.shape)))
        seen.append(Seen(file, small, pixels, inverted, "digit" if digit else "pad"))
    return seen


def recognise(run: SavedRun, seen: list[Seen]) -> list[Found]:
    """What the network of a run says about images."""
    if not seen:
        return []
    pixels = np.stack([one.pixels for one in seen])
    inputs = jax.jit(jax.vmap(run.setup.stream.input))(pixels)
    said = capsjax.classify(run.setup.model, run.params, inputs, batch_size=BATCH)
    scores = said.scores
    if score_name(run.setup.model_config) == "probability":
        scores = jax.nn.softmax(scores)
    best = jnp.stack([said.classes, said.runner_up], axis=1)
    scores = jnp.take_along_axis(scores, best, axis=1)
    inputs, best, scores, drawn = jax.device_get((inputs, best, scores, said.reconstruction))
    names = run.facts["class_names"]
    return [
        Found(
            (names[best[k, 0]], names[best[k, 1]]),
            (float(scores[k, 0]), float(scores[k, 1])),
            inputs[k],
            None if drawn is None else drawn[k],
        )
        for k in range(len(seen))
    ]
