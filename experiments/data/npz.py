"""The arrays of a data set, and reading them from a file: ``--dataset=path/to/arrays.npz``."""

import os
import zlib

import numpy as np

from experiments import UserError
from experiments.data.errors import first_line

ARRAY_SPECS = {  # dtype and rank
    "train_images": (np.uint8, 4),
    "train_labels": (np.int32, 1),
    "test_images": (np.uint8, 4),
    "test_labels": (np.int32, 1),
    "class_names": (np.str_, 1),
    "source": (np.str_, 0),
}
_IMAGES, _LABELS = ("train_images", "test_images"), ("train_labels", "test_labels")


def read(path: str) -> dict[str, np.ndarray]:
    """Returns the images, labels, class names and source of a file of ``numpy.savez``.

    The file contains train_images and test_images, uint8 [N, H, W] or [N, H, W, C], train_labels
    and test_labels, integers [N] from 0, and optionally class_names, text [J].

    Raises:
      UserError: the file cannot be read or contains something else.
    """
    try:
        with (
            open(os.path.expanduser(path), "rb") as file,
            np.load(file, allow_pickle=False) as stored,
        ):
            return check(_complete(path, stored))
    except Exception as error:  # zipfile, zlib and NumPy raise many types for a damaged file
        reason = (isinstance(error, OSError) and error.strerror) or first_line(error)
        raise UserError(f"--dataset={path}: {reason}") from error


def check(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays unchanged after checking types, ranks, lengths, shapes and labels.

    Raises:
      ValueError: they do not have the types and ranks of :data:`ARRAY_SPECS` or do not fit
        together.
    """
    for key, (kind, rank) in ARRAY_SPECS.items():
        if arrays[key].dtype.type is not kind or arrays[key].ndim != rank:
            raise ValueError(f"{key} is not {kind.__name__} of rank {rank}")
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if not 0 < len(images) == len(labels):
            raise ValueError(f"{len(images)} {split} images and {len(labels)} labels")
        if labels.min() < 0 or labels.max() >= len(arrays["class_names"]):
            raise ValueError(f"{split} labels that are no class")
    if arrays["train_images"].shape[1:] != arrays["test_images"].shape[1:]:
        raise ValueError("train and test images differ in shape")
    return arrays


def _complete(path, stored):
    """Returns all arrays: channels, class names and source are added where they are missing."""
    missing = [name for name in (*_IMAGES, *_LABELS) if name not in stored]
    if missing:
        raise ValueError(f"no array {missing[0]}; there are {', '.join(stored) or 'none'}")
    arrays = {name: stored[name] for name in (*_IMAGES, *_LABELS)}
    for name in _IMAGES:
        if arrays[name].dtype != np.uint8:
            raise ValueError(f"{name} are {arrays[name].dtype}, not uint8")
        if arrays[name].ndim == 3:
            arrays[name] = arrays[name][..., None]
    for name in _LABELS:
        if not np.issubdtype(arrays[name].dtype, np.integer):
            raise ValueError(f"{name} are {arrays[name].dtype}, not integers")
        arrays[name] = arrays[name].astype(np.int32)
    if "class_names" in stored:
        arrays["class_names"] = stored["class_names"].astype(str)
    else:
        classes = 1 + max(int(arrays[name].max(initial=0)) for name in _LABELS)
        arrays["class_names"] = np.arange(classes).astype(str)
    checksum = 0
    for name in (*_IMAGES, *_LABELS):
        checksum = zlib.crc32(np.ascontiguousarray(arrays[name]), checksum)
    arrays["source"] = np.array(f"arrays {checksum:08x} from {path}")
    return arrays
