"""Which image files a data set consists of: a folder with a folder for each class, or a table."""

import collections
import csv
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from experiments import UserError
from experiments.data import image_files, image_table
from experiments.data.listed_image import ListedImage, leads_out, split_of
from experiments.files import BadFile

MOST_OTHERS = 200_000  # files and folders, from which a folder with fewer images is no data set
# Names that are data sets of TensorFlow Datasets even where a folder of that name is at hand.
BUILT_IN = ("auto", "digits", "mnist", "fashion_mnist", "cifar10", "smallnorb", "svhn_cropped")
TABLES = (".csv", ".jsonl")
SEPARATORS = ("/", os.sep)  # at the end of a name: a folder


class Listing(NamedTuple):
    """The image files of a data set."""

    images: list[ListedImage]
    class_names: list[str]
    multi_label: bool  # whether an image may have any number of labels
    notes: list[str]  # what is left out


def is_folder(dataset: str) -> bool:
    """Returns whether ``--dataset`` is a folder of images.

    A slash at the end says so. Otherwise a folder that is there is meant, unless the name is that
    of a data set which the commands know.
    """
    if dataset.endswith(SEPARATORS):
        return True
    return dataset not in BUILT_IN and os.path.isdir(os.path.expanduser(dataset))


def is_image_files(dataset: str) -> bool:
    """Returns whether ``--dataset`` is a folder or a table of image files."""
    return dataset.endswith(TABLES) or is_folder(dataset)


def is_own(dataset: str) -> bool:
    """Returns whether ``--dataset`` is a place on this machine, and not the name of a data set."""
    return dataset.endswith(".npz") or is_image_files(dataset)


def list_images(dataset: str) -> Listing:
    """Returns the image files of a folder or a table, in an order that depends on names alone.

    A folder contains a folder for each class, or train, validation and test of such; files that are
    hidden or have no suffix of an image are ignored. A table has a line for each image, with
    ``path``, below the folder of the table, and ``label``, or ``labels`` for sets of them (in CSV
    separated by semicolons), and optionally ``split``.

    Raises:
      UserError: it cannot be read, means something else, or leads out of its folder.
    """
    path = Path(dataset).expanduser()
    try:
        table = path.suffix in TABLES
        images, multi, notes = (*image_table.read(path), []) if table else _of_folder(path)
        if not images:
            raise ValueError(
                "no images; they belong in a folder for each class, FOLDER/CLASS/image.png"
            )
        class_names = sorted({label for image in images for label in image.labels}, key=_order)
        for name in class_names:
            if not name or not name.isprintable():
                raise ValueError(f"{name!r} is no name of a class: empty, or not printable")
        if len(class_names) < 2:
            raise ValueError("there is one class only, and nothing to tell apart")
    except BadFile as error:
        raise UserError(f"--dataset={dataset}: {error}") from error
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise UserError(f"--dataset={dataset}: {reason}") from error
    return Listing(images, class_names, multi, notes)


def _natural(name):
    """Orders text so that numbers in it count as such: 2 before 10."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]


def _order(name):
    """Orders all names, also those that differ in zeros before a number alone."""
    return _natural(name), name


def _of_folder(root):
    folders, parts = _folders_in(root), {}
    for entry in folders:
        # Of images directly in them, they are classes: trains beside cars and buses.
        if (split := split_of(entry.name)) and _folders_in(entry, root):
            if split in parts:
                raise ValueError(
                    f"the folders {parts[split].name} and {entry.name} are both for {split}"
                )
            parts[split] = entry
    loose = [e.name for e in os.scandir(root) if _is_image(e.name) and not e.is_dir()]
    if loose and not folders:
        raise ValueError(
            f"{loose[0]} is in no folder of a class; give FOLDER/CLASS/image.png, or a .csv"
        )
    notes = []
    if loose:
        notes.append(f"{len(loose)} images beside the folders are left out, such as {loose[0]}")
    if not {"train", "test"} & parts.keys():
        parts = {None: root}
    elif others := [entry.name for entry in folders if entry not in parts.values()]:
        notes.append(f"folders beside those of splits are left out: {', '.join(others)}")
    if "test" in parts and "train" not in parts:
        raise ValueError("there is a folder test and none of the name train")
    seen = collections.Counter()
    images = [
        ListedImage(path, str(path.relative_to(root)), (entry.name,), split)
        for split, part in parts.items()
        for entry in _folders_in(part, root)
        for path in _images_below(entry, seen, notes)
    ]
    return images, False, notes


def _folders_in(folder, root=None):
    """The folders in a folder, by name, without hidden ones."""
    found = [e for e in os.scandir(folder) if e.name[0] != "." and e.is_dir()]
    paths = [Path(e.path) for e in sorted(found, key=lambda entry: entry.name)]
    for path in paths:
        if leads_out(path, root or folder):
            raise ValueError(f"{path.name} is a link to outside of the folder; copy what it names")
    return paths


def _images_below(folder, seen: collections.Counter, notes: list[str]) -> Iterator[Path]:
    for where, folders, files in os.walk(folder):  # which follows no links to folders
        folders[:] = sorted(name for name in folders if name[0] != ".")
        linked = [path for name in folders if os.path.islink(path := os.path.join(where, name))]
        notes += [f"{path} is a link to a folder, which is left out" for path in linked]
        names = [name for name in sorted(files) if _is_image(name)]
        seen += collections.Counter(images=len(names), others=len(files) + 1 - len(names))
        if seen["others"] > max(MOST_OTHERS, seen["images"]):
            raise ValueError(f"more than {MOST_OTHERS:,} files and folders in it are no images")
        yield from (Path(where) / name for name in names)


def _is_image(name):
    return name[0] != "." and Path(name).suffix.lower() in image_files.suffixes()
