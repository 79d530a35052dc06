"""The splits of image files into training, validation and test, by class and by content.

Where an image has any number of labels, each set of labels is a class, and rare sets are one.
"""

import collections

import numpy as np

from experiments import UserError
from experiments.data.listed_image import SPLITS, ListedImage

RARE = 10  # images with the same set of labels: sets that fewer have are divided together


def choose(
    images: list[ListedImage], codes: list[bytes], fractions: dict[str, float], seed: int
) -> np.ndarray:
    """Returns the split of each image: that of the data set, or else one by class and seed.

    Args:
      images: of the data set.
      codes: equal where images are.
      fractions: of each class, for ``test`` and ``validation``.
      seed: of the split.
    """
    given = [image.split for image in images]
    splits = np.array([split or "train" for split in given], dtype="U10")
    classes = [image.labels for image in images]
    if any(len(labels) != 1 for labels in classes):
        counts = collections.Counter(classes)
        classes = [labels if counts[labels] >= RARE else ("",) for labels in classes]
    for salt, (split, fraction) in enumerate(fractions.items()):
        if split not in given:
            rows = np.flatnonzero(splits == "train")
            # The seed of each split is its own: their orders are independent.
            chosen = stratified(
                [classes[k] for k in rows],
                [codes[k] for k in rows],
                fraction,
                np.random.RandomState([seed, salt]),
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


def describe(images: list[ListedImage], splits: np.ndarray) -> str:
    """Returns in one line the sizes of the splits, and where each comes from.

    Args:
      images: of the data set.
      splits: of :func:`choose`.

    Raises:
      UserError: no image is for testing.
    """
    if "test" not in set(splits):
        raise UserError(
            "no image is left for testing: a class of one image keeps it for training; add images, "
            "or raise --test_fraction"
        )
    given = {image.split for image in images}
    words = [", ".join(f"{np.sum(splits == split):,} {split}" for split in SPLITS)]
    tested = [split for split in ("test", "validation") if np.any(splits == split)]
    if drawn := " and ".join(split for split in tested if split not in given):
        words.append(f"{drawn} drawn by class and --split_seed")
    if found := [split for split in tested if split in given]:
        without = " and ".join(f"--{split}_fraction" for split in found)
        words.append(f"{' and '.join(found)} as given, without {without}")
    return "; ".join(words)
