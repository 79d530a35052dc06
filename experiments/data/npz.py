"""What the arrays of a data set are, and those of one's own: ``--dataset=path/to/arrays.npz``."""

import os
import zlib

import numpy as np

from experiments.config import UserError

FORM = {
    "train_images": (np.uint8, 4),
    "train_labels": (np.int32, 1),  # dtype and rank
    "test_images": (np.uint8, 4),
    "test_labels": (np.int32, 1),
    "class_names": (np.str_, 1),
    "source": (np.str_, 0),
}
_IMAGES, _LABELS = ("train_images", "test_images"), ("train_labels", "test_labels")


def read(path: str) -> dict[str, np.ndarray]:
    """Images, labels, class names and source of a file of ``numpy.savez``.

    It holds train_images and test_images, uint8 [N, H, W] or [N, H, W, C], train_labels and
    test_labels, integers [N] from 0, and may hold class_names, text [J].

    Raises:
      UserError: it can't be read, or holds something else.
    """
    try:
        with open(os.path.expanduser(path), "rb") as file, np.load(file, allow_pickle=False) as has:
            return check(_arrays(path, has))
    except Exception as error:  # whatever zipfile, zlib and NumPy say to a damaged file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        raise UserError(f"--dataset={path}: {reason}") from error


def check(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays, if they have the types and ranks of FORM and fit together.

    Raises:
      ValueError: they do not.
    """
    for key, (kind, rank) in FORM.items():
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


def _arrays(path, has):
    missing = [name for name in (*_IMAGES, *_LABELS) if name not in has]
    if missing:
        raise ValueError(f"no array {missing[0]}; there are {', '.join(has) or 'none'}")
    found = {name: has[name] for name in (*_IMAGES, *_LABELS)}
    for name in _IMAGES:
        if found[name].dtype != np.uint8:
            raise ValueError(f"{name} are {found[name].dtype}, not uint8")
        if found[name].ndim == 3:
            found[name] = found[name][..., None]
    for name in _LABELS:
        if not np.issubdtype(found[name].dtype, np.integer):
            raise ValueError(f"{name} are {found[name].dtype}, not integers")
        found[name] = found[name].astype(np.int32)
    if "class_names" in has:
        found["class_names"] = has["class_names"].astype(str)
    else:
        classes = 1 + max(int(found[name].max(initial=0)) for name in _LABELS)
        found["class_names"] = np.arange(classes).astype(str)
    code = 0
    for name in (*_IMAGES, *_LABELS):
        code = zlib.crc32(np.ascontiguousarray(found[name]), code)
    found["source"] = np.array(f"arrays {code:08x} from {path}")
    return found
