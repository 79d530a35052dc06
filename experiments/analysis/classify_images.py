"""Classification of image files by a trained network."""

import sys
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import capsjax
from experiments.config import UserError
from experiments.data import image_files
from experiments.data.image_size import RESIZE
from experiments.files import one_line
from experiments.tasks.predictions import Network, predict

CONFIDENT = 0.5  # a class with at least this score is present
FITS = RESIZE | {"digit": image_files.centre_digit}
FIGURE_SIDE = 200  # pixels of a side of an image in the figure


class Classifier(NamedTuple):
    """A trained network, and what is known of its images."""

    title: str
    network: Network
    variables: Any  # what its apply takes
    labels: tuple[str, ...]
    preprocessing: capsjax.Preprocessing


def open_pretrained(place: str) -> Classifier:
    """Returns a pretrained network.

    Args:
      place: see :func:`capsjax.load_pretrained`.

    Raises:
      UserError: there is no such network, or its files can't be used.
    """
    try:
        described = capsjax.describe_pretrained(place)
        model, variables, labels, preprocessing = capsjax.load_pretrained(place)
    except capsjax.PretrainedError as error:
        raise UserError(f"--model: {error}") from error
    network = Network(model, described.network, described.labels_per_image)
    return Classifier(f"pretrained {place}", network, variables, labels, preprocessing)


class PreparedImage(NamedTuple):
    """An image file, and the example that is made from it."""

    file: Path
    image: np.ndarray  # [h, w, 1, 3 or C] in 0..1, small
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
    classifier: Classifier, files: Iterable[Path], invert: str, fit: str
) -> list[PreparedImage]:
    """Reads files and makes an example like those of the data set from each.

    Files that can't be read are named on standard error and skipped.

    Args:
      classifier: which will classify them.
      files: of images; for a network of neither grey nor RGB images, the files of the channels of
        an image joined by commas.
      invert: yes, no, or auto, see :func:`experiments.data.image_files.is_negative`.
      fit: a key of FITS, or auto.

    Raises:
      UserError: the network has images of several channels, and an image has other files.
    """
    taken = classifier.preprocessing
    *shape, channels = taken.image_shape
    prepared = []
    for file in files:
        try:
            image = _read(file, channels)
        except image_files.UnreadableImage as error:
            print(f"{one_line(file)}: {one_line(error)}", file=sys.stderr)
            continue
        single = channels in (1, 3)
        pixels = image_files.with_channels(image, channels) if single else image
        inverted = invert == "yes"
        if invert == "auto":
            inverted = image_files.is_negative(pixels, taken.border)
        pixels = 1 - pixels if inverted else pixels
        how = taken.fit if fit == "auto" else fit
        # Images that have the size already are centred already.
        if fit == "auto" and how == "digit" and list(pixels.shape[:2]) == shape:
            how = "pad"
        pixels = FITS[how](pixels, tuple(shape))
        pixels = np.uint8(np.rint(255 * pixels))
        image = image[..., None] if image.ndim == 2 else image
        small = image_files.resize(image, min(1, FIGURE_SIDE / max(image.shape)))
        prepared.append(PreparedImage(file, small, pixels, inverted, how))
    return prepared


def _read(file: Path, channels: int) -> np.ndarray:
    """Reads the image of a file, or one channel from each of several files."""
    if channels in (1, 3):
        return image_files.read(_standard_input() if str(file) == "-" else file)
    parts = str(file).split(",")
    if len(parts) != channels:
        raise UserError(
            f"{file}: an image of this network has {channels} channels; give the {channels} files "
            "of its channels, joined by commas"
        )
    found = [image_files.with_channels(image_files.read(Path(part)), 1) for part in parts]
    if len({image.shape for image in found}) > 1:
        raise image_files.UnreadableImage("the channels have different sizes")
    return np.concatenate(found, axis=2)


def _standard_input() -> bytes:
    """The contents of an image on standard input, up to the size that is refused."""
    if sys.stdin is None:  # closed by what started this process
        raise image_files.UnreadableImage("standard input is closed")
    return sys.stdin.buffer.read(image_files.LARGEST_FILE + 1)


def classify(classifier: Classifier, images: list[PreparedImage]) -> list[Classification]:
    """Classifies images."""
    if not images:
        return []
    pixels = np.stack([image.pixels for image in images])
    inputs = np.asarray(jax.jit(classifier.preprocessing)(pixels))
    found = predict(classifier.network, classifier.variables, inputs)
    names = classifier.labels
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
