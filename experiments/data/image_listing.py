"""Which image files a data set consists of: a folder with a folder for each class, or a table."""

import collections
import csv
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from experiments import UserError
from experiments.data import image_files
from experiments.files import BadFile, parse, read_text

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val"),
    "test": ("test", "testing"),
}
MOST_OTHERS = 200_000  # files and folders, from which a folder with fewer images is no data set
LARGEST_TABLE = 256 * 2**20  # bytes
BETWEEN_LABELS = ";"  # in a table of comma-separated values


# Names that are data sets of TensorFlow Datasets even where a folder of that name is at hand.
BUILT_IN = ("auto", "digits", "mnist", "fashion_mnist", "cifar10", "smallnorb", "svhn_cropped")
TABLES = (".csv", ".jsonl")
SEPARATORS = ("/", os.sep)  # at the end of a name: a folder


class ListedImage(NamedTuple):
    """An image file of a data set."""

    path: Path
    name: str  # for messages: the path below the folder of the data set
    labels: tuple[str, ...]  # exactly one, unless the data set has several for an image
    split: str | None  # a key of SPLITS, or None where the data set has no splits


class Listing(NamedTuple):
    """The image files of a data set."""

    images: list[ListedImage]
    class_names: list[str]
    multi_label: bool  # whether an image may have any number of labels


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
        images, multi = _of_table(path) if path.suffix in TABLES else _of_folder(path)
        if not images:
            raise ValueError(
                "no images; they belong in a folder for each class, FOLDER/CLASS/image.png"
            )
        class_names = sorted({label for image in images for label in image.labels}, key=_natural)
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
    return Listing(images, class_names, multi)


def leads_out(path: Path, folder: Path) -> bool:
    """Returns whether a path, with its links followed, is not below a folder."""
    return not path.resolve().is_relative_to(folder.resolve())


def _natural(name):
    """Orders text so that numbers in it count as such: 2 before 10."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]


def _of_folder(root):
    folders = {entry.name: entry for entry in _folders_in(root)}
    parts = {
        split: folders[name] for split, names in SPLITS.items() for name in names if name in folders
    }
    loose = [e.name for e in os.scandir(root) if _is_image(e.name) and not e.is_dir()]
    if loose and not folders:
        raise ValueError(
            f"{loose[0]} is in no folder of a class; give FOLDER/CLASS/image.png, or a .csv"
        )
    if not {"train", "test"} & parts.keys():
        parts = {None: root}
    elif "train" not in parts:
        raise ValueError("there is a folder test and none of the name train")
    seen = collections.Counter()
    images = [
        ListedImage(path, str(path.relative_to(root)), (entry.name,), split)
        for split, part in parts.items()
        for entry in _folders_in(part, root)
        for path in _images_below(entry, seen)
    ]
    return images, False


def _folders_in(folder, root=None):
    """The folders in a folder, by name, without hidden ones."""
    found = [e for e in os.scandir(folder) if e.name[0] != "." and e.is_dir()]
    paths = [Path(e.path) for e in sorted(found, key=lambda entry: entry.name)]
    for path in paths:
        if leads_out(path, root or folder):
            raise ValueError(f"{path.name} is a link to outside of the folder; copy what it names")
    return paths


def _images_below(folder, seen: collections.Counter) -> Iterator[Path]:
    for where, folders, files in os.walk(folder):  # which follows no links to folders
        folders[:] = sorted(name for name in folders if name[0] != ".")
        names = [name for name in sorted(files) if _is_image(name)]
        seen += collections.Counter(images=len(names), others=len(files) + 1 - len(names))
        if seen["others"] > max(MOST_OTHERS, seen["images"]):
            raise ValueError(f"more than {MOST_OTHERS:,} files and folders in it are no images")
        yield from (Path(where) / name for name in names)


def _is_image(name):
    return name[0] != "." and Path(name).suffix.lower() in image_files.suffixes()


def _of_table(path):
    text = read_text(path, LARGEST_TABLE)
    rows = list(_rows_of_csv(text) if path.suffix == ".csv" else _rows_of_json(text))
    if not rows:
        raise ValueError("the table has no lines")
    multi = "labels" in rows[0][1]
    images = [_listed(path.parent, line, row, multi) for line, row in rows]
    given = {image.split for image in images}
    if None in given and len(given) > 1:
        raise ValueError("some lines have a split and others have none")
    if None not in given and "train" not in given:
        raise ValueError("no line has the split train")
    return images, multi


def _rows_of_csv(text):
    reader = csv.DictReader(io.StringIO(text, newline=""))
    names = [(name or "").strip().lower() for name in reader.fieldnames or ()]
    if "path" not in names or not {"label", "labels"} & set(names):
        raise ValueError(
            f"the first line names the columns, path and label (or labels), not {', '.join(names)}"
        )
    if twice := {name for name in names if name and names.count(name) > 1}:
        raise ValueError(f"the first line has several columns {min(twice)}")
    if {"label", "labels"} <= set(names):
        raise ValueError("the first line has both label and labels: leave one of them out")
    reader.fieldnames = names
    for row in reader:
        if None in row:
            raise ValueError(f"line {reader.line_num} has more fields than the first line")
        row = {name: (value or "").strip() for name, value in row.items()}
        if "labels" in row:
            parts = map(str.strip, row["labels"].split(BETWEEN_LABELS))
            row["labels"] = [part for part in parts if part]
        yield reader.line_num, row


def _rows_of_json(text):
    for line, one in enumerate(text.splitlines(), 1):
        if one.strip():
            try:
                row = parse(one)
            except ValueError as error:
                raise ValueError(f"line {line} is not JSON ({error})") from error
            if not isinstance(row, dict):
                raise ValueError(f"line {line} is not an object with path and label")
            yield line, row


def _listed(folder, line, row, multi):
    """Returns the image of a line of a table.

    Raises:
      ValueError: the line says something else.
    """
    name, labels = row.get("path"), row.get("labels" if multi else "label")
    labels = labels if multi else [labels]
    if not isinstance(name, str) or not name:
        raise ValueError(f"line {line} has no path")
    if not isinstance(labels, list) or not all(
        isinstance(label, str | int) and not isinstance(label, bool) for label in labels
    ):
        raise ValueError(f"line {line} has no {'list of labels' if multi else 'label'}")
    path = folder / name
    if leads_out(path, folder):
        raise ValueError(f"line {line}: {name!r} is outside of the folder of the table")
    split = row.get("split") or None
    found = next((key for key, names in SPLITS.items() if split in names), None)
    if split and not found:
        raise ValueError(f"line {line}: split {split!r} is none of {', '.join(SPLITS)}")
    return ListedImage(path, name, tuple(dict.fromkeys(map(str, labels))), found)
