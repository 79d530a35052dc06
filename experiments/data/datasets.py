"""Image classification data sets as arrays in host memory, or as stored images if they are large.

:func:`load` returns a :class:`Dataset`: from TensorFlow Datasets (see
:mod:`experiments.data.tfds`), from an .npz file (see :mod:`experiments.data.npz`), or the small
digits that are bundled with scikit-learn.
"""

import math
import os
import sys
from typing import NamedTuple

import numpy as np

from experiments import UserError
from experiments.data import image_files, image_folder, labels, npz
from experiments.data.dataset_cache import cached_or_read, checksum_of
from experiments.data.errors import DatasetUnavailable
from experiments.data.image_folder import ImageOptions
from experiments.data.image_listing import is_folder, is_image_files
from experiments.data.stored_images import StoredImages, leave_stored, take
from experiments.files import one_line

SPLITS = ("train", "validation", "test")
LOOKED_AT = 1000  # of stored images


class Dataset(NamedTuple):
    """Images uint8 [N, H, W, C], labels int32 [N] in 0..num_classes-1; disjoint splits.

    The images of all splits are arrays, or all are stored ones, which training reads while it runs.
    """

    name: str
    source: str
    train_images: np.ndarray | StoredImages
    train_labels: np.ndarray
    validation_images: np.ndarray | StoredImages
    validation_labels: np.ndarray
    test_images: np.ndarray | StoredImages
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


def load(
    name,
    *,
    data_dir=None,
    cache_dir,
    validation_fraction=0.05,
    options=None,
    resident_bytes=math.inf,
):
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
      resident_bytes: the most that all images together may have to become arrays in memory; more
        are stored images, see :mod:`experiments.data.stored_images`.

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
            arrays = npz.read(name, resident_bytes)
        elif is_image_files(name):
            # A slash at the end tells a folder from a name of TensorFlow Datasets.
            loaded = name.rstrip("/\\") + "/" if is_folder(name) else name
            arrays, skipped = _from_files(loaded, options, validation_fraction, resident_bytes)
        else:
            arrays = cached_or_read(loaded, data_dir, cache_dir, resident_bytes)
    except DatasetUnavailable as error:
        if name != "auto":
            raise
        print(f"WARNING: scikit-learn's small digits instead of MNIST: {error}", file=sys.stderr)
        loaded, arrays = "digits", cached_or_read("digits", None, cache_dir)
    digest = str(arrays["checksum"]) if "checksum" in arrays else checksum_of(arrays)
    arrays = leave_stored(arrays, resident_bytes)
    dataset = hold_out_validation(loaded, arrays, validation_fraction)._replace(
        checksum=digest, skipped=skipped
    )
    for doubt in doubts(dataset):
        print(f"--dataset={loaded}: {one_line(doubt)}", file=sys.stderr)
    return dataset


def dataset_facts(dataset) -> dict:
    """Returns what is needed about a data set to classify other images with its networks.

    ``border`` is the range of the brightness of a training image's border, in 0..1: the 5th and
    the 95th percentile, over the images, of the median of the outermost pixels.
    """
    medians = [image_files.border_brightness(image) for image in dataset.train_images[:1000]]
    return {
        "image_shape": list(dataset.image_shape),
        "class_names": list(dataset.class_names),
        "multi_label": dataset.multi_label,
        "border": (np.quantile(medians, (0.05, 0.95)) / 255).round(4).tolist(),
    }


def _from_files(name, options, validation_fraction, resident_bytes):
    """The arrays of image files, by the same conversions as those of a file of arrays."""
    found = image_folder.read(name, options, validation_fraction, resident_bytes)
    for split in SPLITS:
        pixels = found.arrays[f"{split}_images"]
        if isinstance(pixels, np.ndarray) and pixels.size and pixels.max() <= 1:
            raise UserError(
                f"--dataset={name}: no pixel of the {split} images is above 1 of 255; save images "
                "of 0 and 1, such as masks, with 0 and 255"
            )
    try:
        arrays, notes = npz.complete(name, found.arrays)
    except ValueError as error:
        raise UserError(f"--dataset={name}: {error}") from error
    for note in [*found.notes, *notes]:
        print(f"--dataset={name}: {one_line(note)}", file=sys.stderr)
    return arrays, found.skipped


def doubts(dataset):
    """Returns a line about each thing in the data that is probably not meant."""
    found = []
    for split in ("validation", "test") if is_image_files(dataset.name) else ():
        own = getattr(dataset, f"{split}_labels")
        if absent := labels.absent_classes(own, dataset.class_names, split):
            found.append(absent)
    numbered = not is_image_files(dataset.name)
    if absent := labels.absent_classes(
        dataset.train_labels, dataset.class_names, numbered=numbered
    ):
        found.append(absent)
    images = dataset.train_images
    some = images[:LOOKED_AT] if isinstance(images, StoredImages) else images
    if (largest := some.max(initial=0)) <= 1:
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
        *(take(part, ~chosen) for part in parts[:2]),
        *(take(part, chosen) for part in parts[:2]),
        *parts[2:4],
        tuple(parts[4].tolist()),
    )
