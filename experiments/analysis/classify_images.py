"""Classification of image files by the network of a saved run."""

import sys
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from experiments.analysis.saved_run import SavedRun
from experiments.config import UserError
from experiments.data import image_files
from experiments.data.image_size import RESIZE
from experiments.tasks.predictions import predict

CONFIDENT = 0.5  # a class with at least this score is present
CENTRED = ("mnist",)  # data sets whose images were made as image_files.centre makes them
FITS = RESIZE | {"digit": image_files.centre_digit}
FIGURE_SIDE = 200  # pixels of a side of an image in the figure


class PreparedImage(NamedTuple):
    """An image file, and the example that is made from it."""

    file: Path
    image: np.ndarray  # [h, w, 1 or 3] in 0..1, small
    pixels: np.ndarray  # uint8 [H, W, C], as an example of the data set
    inverted: bool
    fit: str  # a key of FITS


class Classification(NamedTuple):
    """The classes of an image with the highest scores, in this order, and one more than are named.

    A network of single classes names one, of pairs two, of sets of labels as many as are present.
    """

    names: tuple[str, ...]
    scores: tuple[float, ...]
    input: np.ndarray  # [H, W, C] of the network, in 0..1
    reconstruction: np.ndarray | None  # [H, W, C], of the classes that are named
    named: int = 1
    every: Mapping[str, float] = types.MappingProxyType({})  # the scores of all classes

    @property
    def confident(self) -> bool:
        """Whether classes are named, and all of them are present."""
        return self.named > 0 and min(self.scores[: self.named]) >= CONFIDENT


def prepare_images(
    run: SavedRun, files: Iterable[Path], invert: str, fit: str
) -> list[PreparedImage]:
    """Reads files and makes an example like those of the data set from each.

    Files that can't be read are named on standard error and skipped.

    Args:
      run: whose network will classify them.
      files: of images.
      invert: yes, no, or auto, see :func:`experiments.data.image_files.is_negative`.
      fit: a key of FITS, or auto.

    Raises:
      UserError: the run was trained on neither grey nor RGB images.
    """
    pipeline, config = run.setup.pipeline, run.setup.config
    *shape, channels = pipeline.shape if pipeline.from_image else run.facts["image_shape"]
    if len(shape) != 2 or channels not in (1, 3):
        raise UserError(f"{run.folder} was trained on {channels} channels, image files have 1 or 3")
    prepared = []
    for file in files:
        try:
            image = image_files.read(_standard_input() if str(file) == "-" else file)
        except image_files.UnreadableImage as error:
            print(f"{file}: {error}", file=sys.stderr)
            continue
        pixels = image_files.with_channels(image, channels)
        inverted = invert == "yes"
        if invert == "auto":
            inverted = image_files.is_negative(pixels, run.facts["border"])
        pixels = 1 - pixels if inverted else pixels
        how = fit
        if fit == "auto":
            centred = config.dataset.split(":")[0] in CENTRED and not pipeline.from_image
            # Images of a folder as those that the network was trained on.
            how = config.resize
            if centred and list(pixels.shape[:2]) != list(shape):
                how = "digit"
        pixels = FITS[how](pixels, tuple(shape))
        pixels = np.uint8(np.rint(255 * pixels))
        image = image_files.with_channels(image, 1 if image.ndim == 2 else 3)
        small = image_files.resize(image, min(1, FIGURE_SIDE / max(image.shape)))
        prepared.append(PreparedImage(file, small, pixels, inverted, how))
    return prepared


def _standard_input() -> bytes:
    """The contents of an image on standard input, up to the size that is refused."""
    return sys.stdin.buffer.read(image_files.LARGEST_FILE + 1)


def classify(run: SavedRun, images: list[PreparedImage]) -> list[Classification]:
    """Classifies images by the network of a run."""
    if not images:
        return []
    pipeline = run.setup.pipeline
    pixels = np.stack([image.pixels for image in images])
    inputs = np.asarray(jax.jit(jax.vmap(pipeline.from_image or pipeline.input))(pixels))
    found, names = predict(run.setup, run.variables, inputs), run.facts["class_names"]
    classified = []
    for k, named in enumerate(found.named):
        scores = found.scores[k]
        order = np.argsort(-scores, kind="stable")[: max(len(named) + 1, 2)]
        classified.append(
            Classification(
                tuple(names[n] for n in order),
                tuple(float(scores[n]) for n in order),
                inputs[k],
                None if found.reconstruction is None else found.reconstruction[k],
                len(named),
                dict(zip(names, map(float, scores), strict=True)),
            )
        )
    return classified
