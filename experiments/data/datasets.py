"""Image classification data sets as arrays in host memory, and their cache.

:func:`load` returns a :class:`Dataset`: from TensorFlow Datasets (see
:mod:`experiments.data.tfds`), from an .npz file (see :mod:`experiments.data.npz`), or the small
digits that are bundled with scikit-learn.
"""

import hashlib
import os
import pathlib
import sys
import tempfile
from typing import NamedTuple

import numpy as np

from experiments import UserError
from experiments.data import image_folder, labels, npz, tfds
from experiments.data.errors import DatasetUnavailable, first_line
from experiments.data.image_folder import ImageOptions
from experiments.data.image_listing import is_folder, is_image_files
from experiments.files import check_private

# What the checksum of a data set is about.
CONTENTS = ("train_images", "train_labels", "test_images", "test_labels", "class_names")
CONTENTS += ("validation_images", "validation_labels")  # which not all have
SPLITS = ("train", "validation", "test")
DIGITS_SOURCE = "scikit-learn digits, 8x8 enlarged to 28x28"


class Dataset(NamedTuple):
    """Images uint8 [N, H, W, C], labels int32 [N] in 0..num_classes-1; disjoint splits."""

    name: str
    source: str
    train_images: np.ndarray
    train_labels: np.ndarray
    validation_images: np.ndarray
    validation_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    checksum: str = ""  # of the arrays and names before they are divided; empty: not known
    skipped: tuple[image_folder.Skipped, ...] = ()  # files of a folder that can't be read

    @property
    def multi_label(self):
        """Whether labels are sets of classes, uint8 [N, J] of zeros and ones."""
        return self.train_labels.ndim == 2

    @property
    def image_shape(self):
        """(H, W, C)."""
        return self.train_images.shape[1:]

    @property
    def num_classes(self):
        """The number of classes, with or without examples."""
        return len(self.class_names)


def load(name, *, data_dir=None, cache_dir, validation_fraction=0.05, options=None):
    """Loads a :class:`Dataset` from the cache, else from a prepared TFDS folder, else by download.

    Args:
      name: 'digits', a TFDS 'name[/config][:version]', the path of an .npz file, of a folder or a
        table of images, or 'auto' for MNIST with the digits as a substitute.
      data_dir: TFDS folder that contains the prepared data set; nothing is downloaded into it.
        None stands for TFDS's default folder.
      cache_dir: folder in which ``datasets/<name>.npz`` is read or, where possible, written.
      validation_fraction: fraction in [0, 1) of the training examples that is held out for
        validation, the same examples for all seeds.
      options: :class:`~experiments.data.image_folder.ImageOptions`, how image files are read.

    What is probably not meant, see :func:`doubts`, is said on standard error.

    Raises:
      UserError: the data set is unknown, unusable or unavailable, or its cache is corrupt.
    """
    data_dir = os.path.abspath(os.path.expanduser(data_dir)) if data_dir else None
    options = options or ImageOptions()
    for flag, value, usual in zip(ImageOptions._fields, options, ImageOptions()):
        if value != usual and not is_image_files(name):
            raise UserError(f"--{flag} applies to folders and tables of images, not {name}")
    loaded, skipped = "mnist" if name == "auto" else name, ()
    try:
        if name.endswith(".npz"):
            arrays = npz.read(name)
        elif is_image_files(name):
            # A slash at the end tells a folder from a name of TensorFlow Datasets.
            loaded = name.rstrip("/\\") + "/" if is_folder(name) else name
            arrays, skipped = _from_files(loaded, options, validation_fraction)
        else:
            arrays = _cached_or_read(loaded, data_dir, cache_dir)
    except DatasetUnavailable as error:
        if name != "auto":
            raise
        print(f"WARNING: scikit-learn's small digits instead of MNIST: {error}", file=sys.stderr)
        loaded, arrays = "digits", _cached_or_read("digits", None, cache_dir)
    dataset = hold_out_validation(loaded, arrays, validation_fraction)._replace(
        checksum=checksum(*_contents(arrays)),
        skipped=skipped,
    )
    for doubt in doubts(dataset):
        print(f"--dataset={loaded}: {doubt}", file=sys.stderr)
    return dataset


def checksum(*arrays):
    """Returns 32 hexadecimal digits that identify the contents of arrays: part of a SHA-256."""
    digest = hashlib.sha256()
    for array in arrays:
        # Text is as wide as its longest word, whoever has made the array.
        array = np.char.encode(array, "utf-8") if array.dtype.kind == "U" else array
        digest.update(f"{array.dtype.str} {array.shape};".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()[:32]


def _contents(arrays):
    return [np.asarray(arrays[name]) for name in CONTENTS if name in arrays]


def _from_files(name, options, validation_fraction):
    """The arrays of image files, by the same conversions as those of a file of arrays."""
    found = image_folder.read(name, options, validation_fraction)
    try:
        arrays, notes = npz.complete(name, found.arrays)
    except ValueError as error:
        raise UserError(f"--dataset={name}: {error}") from error
    for note in [*found.notes, *notes]:
        print(f"--dataset={name}: {note}", file=sys.stderr)
    return arrays, found.skipped


def doubts(dataset):
    """Returns a line about each thing in the data that is probably not meant."""
    found = []
    for split in ("validation", "test") if is_image_files(dataset.name) else ():
        own = getattr(dataset, f"{split}_labels")
        if absent := labels.absent_classes(own, dataset.class_names, split):
            found.append(absent)
    if absent := labels.absent_classes(dataset.train_labels, dataset.class_names):
        found.append(absent)
    if (largest := dataset.train_images.max(initial=0)) <= 1:
        found.append(
            f"the largest pixel is {largest} of 255, nearly black; save the images times 255 as "
            "an .npz file"
        )
    return found


def hold_out_validation(name, arrays, fraction):
    """Returns the :class:`Dataset` in which a fraction of the training examples is for validation.

    Args:
      name: of the data set. arrays: of :data:`experiments.data.npz.ARRAY_SPECS`, and optionally
        validation_images and validation_labels, which then are the examples for validation.
      fraction: in [0, 1).
    """
    if "validation_images" in arrays:
        names = [f"{split}_{what}" for split in SPLITS for what in ("images", "labels")]
        class_names = tuple(arrays["class_names"].tolist())
        return Dataset(name, str(arrays["source"]), *(arrays[n] for n in names), class_names)
    parts = [arrays[key] for key in npz.ARRAY_SPECS]
    size = len(parts[1])
    if not (0 <= fraction < 1 and (held_out := round(fraction * size)) < size):
        raise UserError(f"validation fraction {fraction}: not in [0, 1), or no training data left")
    # RandomState's numbers are frozen; those of np.random.Generator may change with NumPy.
    chosen = np.random.RandomState(20171026).permutation(size) < held_out
    return Dataset(
        name,
        str(parts[5]),
        *(part[~chosen] for part in parts[:2]),
        *(part[chosen] for part in parts[:2]),
        *parts[2:4],
        tuple(parts[4].tolist()),
    )


def enlarged_digits():
    """Returns the arrays of scikit-learn's digits, enlarged to 28x28 pixels."""
    from scipy import ndimage
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    large = ndimage.zoom(digits.images, (1, 3.5, 3.5), order=1, mode="nearest", grid_mode=True)
    # 8 of 16 is a tie at 127.5: the margin sends it up whatever the rounding errors.
    images = np.floor(large * (255 / 16) + 0.5 + 1e-6).astype(np.uint8)[..., None]
    classes = digits.target.astype(np.int32)
    parts = train_test_split(images, classes, test_size=360, random_state=0, stratify=classes)
    names = digits.target_names.astype(str)
    return dict(
        zip(npz.ARRAY_SPECS, (*parts[::2], *parts[1::2], names, DIGITS_SOURCE), strict=True)
    )


def cache_file(name, cache_dir):
    """Returns the path under which a data set is cached in a cache folder."""
    return os.path.join(os.path.expanduser(cache_dir), "datasets", name.replace("/", "+") + ".npz")


def _cached_or_read(name, data_dir, cache_dir):
    path = cache_file(name, cache_dir)
    for folder in (os.path.dirname(path), os.path.dirname(os.path.dirname(path))):
        check_private(pathlib.Path(folder))
    arrays = _read_cache(path, name) if os.path.exists(path) else None
    if name == "digits":  # cached because the import of scikit-learn takes seconds
        arrays = arrays or _write_cache(path, enlarged_digits())
    elif not arrays or (data_dir and not str(arrays["source"]).endswith(f" from {data_dir}")):
        arrays = _write_cache(path, tfds.read(name, data_dir, path))
    return arrays


def _read_cache(path, name):
    try:
        with npz.opened(path) as stored:
            arrays = npz.check({key: stored[key] for key in npz.ARRAY_SPECS})
            digest = str(stored["checksum"]) if "checksum" in stored else ""
        if digest and digest != checksum(*_contents(arrays)):
            raise ValueError("its arrays have another checksum")
        start = DIGITS_SOURCE if name == "digits" else f"tfds {name} "
        if not str(arrays["source"]).startswith(start):
            raise ValueError(f"it does not hold {name}")
    except Exception as error:  # zipfile, zlib and NumPy raise many types for a damaged file
        raise UserError(
            f"bad data set cache {path}: {first_line(error)}; delete this file"
        ) from error
    return arrays


def _write_cache(path, arrays):
    """Writes the arrays where possible, and returns them."""
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            digest = checksum(*_contents(arrays))
            np.savez(os.path.join(scratch, "whole.npz"), **arrays, checksum=digest)
            os.replace(os.path.join(scratch, "whole.npz"), path)
    except OSError as error:
        print(f"continuing without a cache: cannot write {path} ({error})", file=sys.stderr)
    return arrays
