"""A table of image files and their labels: ``--dataset=PATH.csv`` or ``PATH.jsonl``."""

import csv
import io
from pathlib import Path

from experiments.data.listed_image import SPLITS, ListedImage, leads_out, split_of
from experiments.files import parse, read_text

LARGEST_TABLE = 256 * 2**20  # bytes
BETWEEN_LABELS = ";"  # in a table of comma-separated values


def read(path: Path) -> tuple[list[ListedImage], bool]:
    """Returns the images of a table, and whether they have sets of labels.

    Raises:
      ValueError: the table says something else. BadFile: it can't be read.
    """
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
    for line, one in enumerate(text.split("\n"), 1):
        if one.strip():
            try:
                row = parse(one)
            except ValueError as error:
                raise ValueError(f"line {line} is not JSON ({error})") from error
            if not isinstance(row, dict):
                raise ValueError(f"line {line} is not an object with path and label")
            row = {name.strip().lower(): value for name, value in row.items()}
            if {"label", "labels"} <= row.keys():
                raise ValueError(f"line {line} has both label and labels: leave one of them out")
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
        what = "list of labels" if multi else "label"
        if labels in ([], [None]):
            raise ValueError(f"line {line} has no {what}")
        raise ValueError(
            f"line {line}: {labels if multi else labels[0]!r} is no {what}: text or whole numbers"
        )
    if not multi and labels == [""]:
        raise ValueError(f"line {line} has no label")
    path = folder / name
    if leads_out(path, folder):
        raise ValueError(f"line {line}: {name!r} is outside of the folder of the table")
    split = row.get("split") or None
    found = split_of(split) if isinstance(split, str) else None
    if split and not found:
        raise ValueError(f"line {line}: split {split!r} is none of {', '.join(SPLITS)}")
    return ListedImage(path, name, tuple(sorted({str(label).strip() for label in labels})), found)
