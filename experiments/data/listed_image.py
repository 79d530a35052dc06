"""One image file of a data set, and its split."""

from pathlib import Path
from typing import NamedTuple

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val"),
    "test": ("test", "testing"),
}


class ListedImage(NamedTuple):
    """An image file of a data set."""

    path: Path
    name: str  # for messages: the path below the folder of the data set
    labels: tuple[str, ...]  # exactly one, unless the data set has several for an image
    split: str | None  # a key of SPLITS, or None where the data set has no splits


def split_of(name: str) -> str | None:
    """Returns the split that a name means, without regard to case, or None."""
    return next((split for split, names in SPLITS.items() if name.strip().lower() in names), None)


def leads_out(path: Path, folder: Path) -> bool:
    """Returns whether a path, with its links followed, is not below a folder."""
    return not path.resolve().is_relative_to(folder.resolve())
