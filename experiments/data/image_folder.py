"""Image files as the arrays of a data set: ``--dataset=FOLDER`` or a table of paths and labels."""

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments import UserError
from experiments.data import image_files, image_size, image_splits
from experiments.data.image_listing import Listing, list_images
from experiments.data.listed_image import SPLITS, leads_out
from experiments.data.stored_images import StoredImages, take
from experiments.files import free_bytes, size

NAMED = 10  # unreadable files, at most
MEMORY_SHARE = 0.5  # of the free memory that images may take


class ImageOptions(NamedTuple):
    """How image files are read and split: the flags of these names."""

    image_size: str = "auto"
    resize: str = "pad"
    channels: str = "auto"
    test_fraction: float = 0.2
    split_seed: int = 0
    max_bad_fraction: float = 0.05


class Skipped(NamedTuple):
    """A file that was left out, and why."""

    name: str
    reason: str


class ImageArrays(NamedTuple):
    """The arrays of a data set, as :func:`experiments.data.npz.complete` takes them."""

    arrays: dict[str, np.ndarray | StoredImages]  # with validation_images and validation_labels
    notes: list[str]  # that the user should know
    skipped: tuple[Skipped, ...]


class Seen(NamedTuple):
    """What is known of an image that has been read."""

    colours: bool
    codes: dict[int, bytes]  # of its pixels with 1 and 3 channels, if they are not kept
    pixels: np.ndarray | None


class InFiles:
    """Images of files that have been read before, see :class:`StoredImages`.

    Args:
      paths: of N files.
      shape: height and width that the images get.
      channels: of all images, 1 or 3.
      resize: how they get their size.
    """

    decodes = True

    def __init__(self, paths: list[Path], shape: tuple[int, int], channels: int, resize: str):
        self.paths, self.resize = paths, resize
        self.shape = (len(paths), *shape, channels)

    def __call__(self, row: int) -> np.ndarray:
        """Returns an image.

        Raises:
          UserError: the file has changed and can't be read any more.
        """
        path, (_, height, width, channels) = self.paths[row], self.shape
        try:
            pixels = decode(path, (height, width), self.resize, known=True)
        except image_files.UnreadableImage as error:
            raise UserError(f"{path} could be read before and can't any more: {error}") from error
        return _with_channels(pixels, channels)


def decode(path: Path, shape: tuple[int, int], resize: str, known: bool = False) -> np.ndarray:
    """Returns the image of a file in a size, uint8 ``[H, W, C]``, C being 3 if it has colours.

    Args:
      path, known: see :func:`experiments.data.image_files.read`.
      shape: H and W.
      resize: how it gets this size.
    """
    image = image_files.read(path, known=known)
    colours = image_size.has_colours(image)
    image = image_files.with_channels(image, 3 if colours else 1)
    return np.uint8(np.rint(255 * image_size.RESIZE[resize](image, shape)))


def read(
    dataset: str,
    options: ImageOptions,
    validation_fraction: float,
    resident_bytes: float = math.inf,
) -> ImageArrays:
    """Reads all images of a folder or a table, brings them to one size, and splits them.

    Labels are numbers in the order of ``class_names``, or with several for an image ``[N, J]``.

    Args:
      dataset: the value of ``--dataset``.
      options: how images are read and split.
      validation_fraction: of each class, for validation, where the data set has no such split.
      resident_bytes: if images have more together, they are not kept: they are stored images, which
        are read again when they are asked for.

    Raises:
      UserError: there are no such images, or too many unreadable ones.
    """
    listing = list_images(dataset)
    place = Path(dataset).expanduser()
    folder = place if place.is_dir() else place.parent
    sizes, skipped = _readable(listing.images, folder, image_files.size_of)
    _check_skipped(dataset, listing, skipped, options)
    shape, how = image_size.choose(options.image_size, list(sizes.values()))
    stored = (1 if options.channels == "1" else 3) * len(sizes) * math.prod(shape) > resident_bytes
    if not stored:
        _check_memory(dataset, len(sizes), shape)

    def look(path):
        pixels = decode(path, shape, options.resize)
        codes = {n: _code(_with_channels(pixels, n)) for n in (1, 3)} if stored else {}
        return Seen(pixels.shape[2] == 3, codes, None if stored else pixels)

    kept = [image for image in listing.images if image in sizes]
    found, damaged = _readable(kept, folder, look)
    skipped = tuple(sorted(skipped + damaged))
    _check_skipped(dataset, listing, skipped, options)
    kept = [image for image in kept if image in found]
    colours = any(seen.colours for seen in found.values())
    channels = int(options.channels) if options.channels != "auto" else 3 if colours else 1
    if stored:
        codes = [found[image].codes[channels] for image in kept]
        pixels = StoredImages(
            InFiles([image.path for image in kept], shape, channels, options.resize)
        )
    else:
        pixels = np.stack([_with_channels(found[image].pixels, channels) for image in kept])
        codes = [_code(one) for one in pixels]
    fractions = {"test": options.test_fraction, "validation": validation_fraction}
    splits = image_splits.choose(kept, codes, fractions, options.split_seed)
    labels = _labels(kept, listing)
    notes = [
        f"{len(kept):,} images of {listing_words(listing)}, {shape[0]}x{shape[1]} pixels ({how}), "
        f"{channels} channel{'s' * (channels > 1)}, --resize={options.resize}",
        *listing.notes,
        *_words_about_skipped(skipped),
        image_splits.describe(kept, splits),
        *image_splits.duplicates(kept, codes, splits),
    ]
    arrays = {"class_names": np.array(listing.class_names)}
    arrays["multi_label"] = np.array(listing.multi_label)
    for split in SPLITS:
        rows = np.flatnonzero(splits == split)
        arrays |= {f"{split}_images": take(pixels, rows), f"{split}_labels": labels[rows]}
    return ImageArrays(arrays, notes, skipped)


def _readable(images, folder, function) -> tuple[dict, tuple[Skipped, ...]]:
    """Returns the values of a function of the paths of images, by image, and where it fails."""
    found, skipped = {}, []
    for image in images:
        try:
            if leads_out(image.path, folder):
                raise image_files.UnreadableImage("a link to outside of the folder")
            found[image] = function(image.path)
        except image_files.UnreadableImage as error:
            skipped.append(Skipped(image.name, str(error)))
    return found, tuple(skipped)


def _check_skipped(dataset, listing, skipped, options) -> None:
    count, bad = len(listing.images), len(skipped)
    if bad == count or bad > options.max_bad_fraction * count:
        raise UserError(
            f"--dataset={dataset}: {bad} of {count} files can't be read, more than "
            f"--max_bad_fraction={options.max_bad_fraction:g}; the first is {skipped[0].name} "
            f"({skipped[0].reason})"
        )


def _check_memory(dataset, count, shape) -> None:
    needed, free = 6 * count * shape[0] * shape[1], free_bytes()
    if needed > MEMORY_SHARE * free:
        raise UserError(
            f"--dataset={dataset}: {count:,} images of {shape[0]}x{shape[1]} pixels need "
            f"{size(needed)}, and {size(free)} are free; choose a smaller --image_size"
        )


def _code(pixels):
    return hashlib.sha256(pixels.tobytes()).digest()


def _with_channels(pixels, channels):
    if pixels.shape[2] == channels:
        return pixels
    if pixels.shape[2] == 1:
        return np.repeat(pixels, channels, axis=2)
    grey = image_files.with_channels(np.float32(pixels) / 255, channels)
    return np.uint8(np.rint(255 * grey))


def _labels(images, listing: Listing) -> np.ndarray:
    number = {name: k for k, name in enumerate(listing.class_names)}
    if not listing.multi_label:
        return np.array([number[image.labels[0]] for image in images], np.int32)
    labels = np.zeros((len(images), len(number)), np.uint8)
    for row, image in zip(labels, images, strict=True):
        row[[number[label] for label in image.labels]] = 1
    return labels


def listing_words(listing: Listing) -> str:
    """Returns the number of classes in words."""
    several = ", any number of them in an image" if listing.multi_label else ""
    return f"{len(listing.class_names)} classes{several}"


def _words_about_skipped(skipped: Iterable[Skipped]) -> list[str]:
    skipped = list(skipped)
    if not skipped:
        return []
    more = f" and {len(skipped) - NAMED} more" if len(skipped) > NAMED else ""
    names = "; ".join(f"{one.name} ({one.reason})" for one in skipped[:NAMED])
    return [f"{len(skipped)} files can't be read and are left out: {names}{more}"]
