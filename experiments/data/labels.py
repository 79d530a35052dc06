"""The labels of user-provided arrays as int32 ``[N]``, or one line that says why not."""

import numpy as np

SPARSE = 10  # classes for each one with images, above which labels are not numbers from 0


def as_labels(
    arrays: dict[str, np.ndarray], class_names: np.ndarray | None
) -> tuple[list[np.ndarray], np.ndarray, list[str]]:
    """Converts the labels of all splits to class indices.

    Args:
      arrays: by name, each ``[N]`` or ``[N, 1]``: integers from 0, whole floats, booleans or text,
        or one-hot ``[N, J]``.
      class_names: text ``[J]``, or None: the numbers of the classes, or the texts in order.

    Returns:
      The labels, int32 ``[N]``; the names ``[J]``; and a line about each thing that the user
      should know.

    Raises:
      ValueError: the labels mean something else; the message says how to convert them.
    """
    parts, notes, columns = [], [], 0
    for name, values in arrays.items():
        values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
        if values.ndim == 2:
            columns = max(columns, values.shape[1])
            values = _from_one_hot(name, values)
            notes.append(f"{name} are one-hot; the class is the place of the one")
        if values.ndim != 1:
            raise ValueError(
                f"{name} are {'x'.join(map(str, values.shape))}, not one label for each image [N]"
            )
        parts.append(values)
    kinds = {values.dtype.kind in "US" for values in parts}
    if len(kinds) > 1:
        raise ValueError(f"{' and '.join(arrays)}: some are text, others numbers")
    if kinds == {True}:
        parts, class_names, note = _from_text(parts, class_names)
        notes.append(note)
    parts = [_whole(name, values) for name, values in zip(arrays, parts, strict=True)]
    if class_names is None:
        class_names = np.arange(max(columns, _count(parts))).astype(str)
    for name, values in zip(arrays, parts, strict=True):
        _check_range(name, values, len(class_names))
    return [values.astype(np.int32) for values in parts], class_names, notes


def as_label_sets(
    arrays: dict[str, np.ndarray], class_names: np.ndarray | None
) -> tuple[list[np.ndarray], np.ndarray, list[str]]:
    """Converts the labels of images with any number of classes; see :func:`as_labels`.

    Args:
      arrays: by name, each ``[N, J]`` of zeros and ones.
      class_names: text ``[J]``, or None: the numbers of the classes.

    Returns:
      The labels, uint8 ``[N, J]``; the names ``[J]``; and no lines.

    Raises:
      ValueError: the labels are something else.
    """
    widths = {x.shape[1] for x in arrays.values() if x.ndim == 2}
    classes = len(class_names) if class_names is not None else max(widths, default=0)
    for name, values in arrays.items():
        if values.ndim != 2 or values.dtype.kind not in "biuf" or values.shape[1] != classes:
            raise ValueError(f"{name} are not [N, {classes}], a zero or one for each class")
        if not np.isin(values, (0, 1)).all():
            raise ValueError(f"{name} of several classes are zeros and ones, nothing else")
    if class_names is None:
        class_names = np.arange(classes).astype(str)
    return [values.astype(np.uint8) for values in arrays.values()], class_names, []


def absent_classes(
    labels: np.ndarray, class_names: tuple[str, ...], split: str = "", *, numbered: bool = True
) -> str:
    """Returns in one line which classes have no images of a split, or nothing.

    Args:
      labels: ``[N]``, or sets of them ``[N, J]``.
      class_names: of all classes.
      split: the word for it, by default training.
      numbered: whether labels are numbers in the data, and not names.
    """
    present = np.unique(labels) if labels.ndim == 1 else np.flatnonzero(labels.any(axis=0))
    absent = np.setdiff1d(np.arange(len(class_names)), present)
    if not len(absent) or not len(present):
        return ""
    names = ", ".join(class_names[k] for k in absent[:10]) + (", ..." if len(absent) > 10 else "")
    which = f"class {names} has" if len(absent) == 1 else f"{len(absent)} classes ({names}) have"
    first = absent.tolist() == [0] and numbered and not split
    start = ": do labels start at 1? subtract 1" if first else ""
    return f"{which} no {split or 'training'} images{start}"


def _from_one_hot(name, values):
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{name} are {values.dtype} of two axes; give one label an image, [N]")
    if not np.isin(values, (0, 1)).all():
        raise ValueError(
            f"{name} have two axes and are not one-hot: give one label an image, [N]; of scores "
            f"that is {name}.argmax(axis=1)"
        )
    if (values.sum(axis=1) != 1).any():
        raise ValueError(
            f"{name} name several classes, or none, for an image; exactly one is supported, unless "
            "the array multi_label=True says that they are sets"
        )
    return values.argmax(axis=1)


def as_text(values: np.ndarray) -> np.ndarray:
    """Returns names as text: bytes are UTF-8, as in HDF5."""
    return np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values.astype(str)


def _from_text(parts, class_names):
    parts = [as_text(x) for x in parts]
    note = "labels are text, numbered in the order of class_names"
    if class_names is None:
        class_names = np.unique(np.concatenate(parts))
        note = "labels are text, numbered in alphabetical order"
    number = {name: k for k, name in enumerate(class_names.tolist())}
    unknown = [text for values in parts for text in values.tolist() if text not in number]
    if unknown:
        raise ValueError(f"the label {unknown[0]!r} is not among class_names")
    parts = [np.array([number[text] for text in x.tolist()], np.int32) for x in parts]
    return parts, class_names, note


def _whole(name, values):
    """Returns the labels as they are if they are integers, or else whole numbers as integers."""
    if values.dtype.kind in "iu":
        return values
    if values.dtype.kind not in "bf":
        raise ValueError(f"{name} are {values.dtype}; give integers from 0, or text")
    if not (np.isfinite(values) & (values == np.rint(values))).all():
        wrong = values[~(np.isfinite(values) & (values == np.rint(values)))][0]
        raise ValueError(f"{name} contain {wrong:g}; labels are integers from 0, or text")
    return values.astype(np.int64)


def _count(parts):
    """Returns the number of classes of integer labels without names."""
    largest = max((int(values.max()) for values in parts if len(values)), default=0)
    different = len(np.unique(np.concatenate(parts)))
    if largest >= SPARSE * max(different, SPARSE):
        raise ValueError(
            f"labels go up to {largest} but have {different} different values; number them from "
            "0: np.unique(labels, return_inverse=True)[1]"
        )
    return 1 + max(largest, 0)


def _check_range(name, values, classes):
    if not len(values):
        return
    low, high = int(values.min()), int(values.max())
    if low < 0:
        raise ValueError(
            f"{name} contain {low}, which is no class: labels are 0 to {classes - 1}; number them "
            f"from 0, or leave out images without a class: {name} >= 0"
        )
    if high >= classes:
        start = "; do labels start at 1? subtract 1" if low == 1 and high == classes else ""
        raise ValueError(
            f"{name} contain {high}, which is no class: {classes} class_names are labels 0 to "
            f"{classes - 1}{start}"
        )
