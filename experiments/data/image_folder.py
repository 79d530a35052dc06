"""Image files as the arrays of a data set: ``--dataset=FOLDER`` or a table of paths and labels."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from experiments import UserError
from experiments.data import image_files, image_size
from experiments.data.image_listing import SPLITS, ListedImage, Listing, leads_out, list_images

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

    arrays: dict[str, np.ndarray]  # with validation_images and validation_labels
    notes: list[str]  # that the user should know
    skipped: tuple[Skipped, ...]


def read(dataset: str, options: ImageOptions, validation_fraction: float) -> ImageArrays:
    """Reads all images of a folder or a table, brings them to one size, and splits them.

    Labels are numbers in the order of ``class_names``, or with several for an image ``[N, J]``.

    Args:
      dataset: the value of ``--dataset``.
      options: how images are read and split.
      validation_fraction: of each class, for validation, where the data set has no such split.

    Raises:
      UserError: there are no such images, or too many unreadable ones.
    """
    listing = list_images(dataset)
    place = Path(dataset).expanduser()
    folder = place if place.is_dir() else place.parent
    sizes, skipped = _readable(listing.images, folder, image_files.size_of)
    _check_skipped(dataset, listing, skipped, options)
    shape, how = image_size.choose(options.image_size, list(sizes.values()))
    _check_memory(dataset, len(sizes), shape)

    def small(path):
        image = image_files.read(path)
        colours = image_size.has_colours(image)
        image = image_files.with_channels(image, 3 if colours else 1)
        return np.uint8(np.rint(255 * image_size.RESIZE[options.resize](image, shape)))

    kept = [image for image in listing.images if image in sizes]
    found, damaged = _readable(kept, folder, small)
    skipped = tuple(sorted(skipped + damaged))
    _check_skipped(dataset, listing, skipped, options)
    kept = [image for image in kept if image in found]
    colours = any(pixels.shape[2] == 3 for pixels in found.values())
    channels = int(options.channels) if options.channels != "auto" else 3 if colours else 1
    pixels = np.stack([_with_channels(found[image], channels) for image in kept])
    codes = [hashlib.sha256(one.tobytes()).digest() for one in pixels]
    splits = _splits(kept, codes, options, validation_fraction)
    labels = _labels(kept, listing)
    notes = [
        f"{len(kept):,} images of {listing_words(listing)}, {shape[0]}x{shape[1]} pixels ({how}), "
        f"{channels} channel{'s' * (channels > 1)}, --resize={options.resize}",
        *_words_about_skipped(skipped),
        *_words_about_splits(kept, splits, listing),
        *duplicates(kept, codes, splits),
    ]
    arrays = {"class_names": np.array(listing.class_names)}
    arrays["multi_label"] = np.array(listing.multi_label)
    for split in SPLITS:
        rows = np.flatnonzero(splits == split)
        arrays |= {f"{split}_images": pixels[rows], f"{split}_labels": labels[rows]}
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
    needed, free = 6 * count * shape[0] * shape[1], psutil.virtual_memory().available
    if needed > MEMORY_SHARE * free:
        raise UserError(
            f"--dataset={dataset}: {count:,} images of {shape[0]}x{shape[1]} pixels need "
            f"{needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free; choose a smaller "
            "--image_size"
        )


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


def _splits(
    images: list[ListedImage], codes: list[bytes], options: ImageOptions, validation_fraction: float
) -> np.ndarray:
    """Returns the split of each image: that of the data set, or else one by class and seed."""
    given = [image.split for image in images]
    splits = np.array([split or "train" for split in given], dtype="U10")
    classes = [image.labels for image in images]
    fractions = {"test": options.test_fraction, "validation": validation_fraction}
    for salt, (split, fraction) in enumerate(fractions.items()):
        if split not in given:
            rows = np.flatnonzero(splits == "train")
            # The seed of each split is its own: their orders are independent.
            chosen = stratified(
                [classes[k] for k in rows],
                [codes[k] for k in rows],
                fraction,
                np.random.RandomState([options.split_seed, salt]),
            )
            splits[rows[chosen]] = split
    return splits


def stratified(
    classes: list, codes: list[bytes], fraction: float, random: np.random.RandomState
) -> list[int]:
    """Returns the rows of a random part of each class: its fraction, rounded, or one of two images.

    At least one image of each class stays behind. Equal images stay together.

    Args:
      classes: of each image; sets of labels count as classes.
      codes: equal where images are.
      fraction: in [0, 1).
      random: draws the rows; its numbers are frozen, those of ``np.random.Generator`` may change.
    """
    groups = {}
    for row, (which, code) in enumerate(zip(classes, codes, strict=True)):
        groups.setdefault(which, {}).setdefault(code, []).append(row)
    first, chosen = {code: row for row, code in reversed(list(enumerate(codes)))}, []
    for which in sorted(groups):
        own = [rows for rows in groups[which].values() if classes[first[codes[rows[0]]]] == which]
        count = round(fraction * len(own)) or (fraction > 0 and len(own) > 1)
        order = random.permutation(len(own))[: min(count, len(own) - 1)]
        chosen += [row for k in order for row in own[k]]
    picked = {codes[row] for row in chosen}
    return [row for row, code in enumerate(codes) if code in picked]


def duplicates(images: list[ListedImage], codes: list[bytes], splits: np.ndarray) -> list[str]:
    """Returns lines about equal images in different splits, or with different labels."""
    first, shared, differ = {}, [], []
    order = sorted(range(len(codes)), key=lambda k: list(SPLITS).index(splits[k]))
    for row in order:
        other = first.setdefault(codes[row], row)
        pair = f"{images[row].name} and {images[other].name}"
        if splits[row] != splits[other]:
            shared.append(pair)
        if images[row].labels != images[other].labels:
            differ.append(pair)
    lines = []
    if shared:
        lines.append(
            f"{len(shared)} images of validation or test are also among those before them, such as "
            f"{shared[0]}: errors on them say nothing about new images"
        )
    if differ:
        lines.append(f"{len(differ)} equal images have different labels, such as {differ[0]}")
    return lines


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


def _words_about_splits(images, splits, listing) -> list[str]:
    given = {image.split for image in images} - {None}
    counts = ", ".join(f"{np.sum(splits == split):,} {split}" for split in SPLITS)
    made = [split for split in ("test", "validation") if split not in given]
    made = [split for split in made if np.any(splits == split)]
    lines = [f"{counts}" + (f"; {' and '.join(made)} drawn by class and --split_seed" * bool(made))]
    if "test" not in set(splits):
        raise UserError("no image is left for testing; raise --test_fraction")
    return lines
