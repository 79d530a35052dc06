"""Data sets that were decoded once, in the cache folder, and the checksum of a data set."""

import hashlib
import math
import os
import pathlib
import sys
import tempfile

import numpy as np

from experiments import UserError
from experiments.data import npz, tfds
from experiments.data.errors import first_line
from experiments.data.small_digits import DIGITS_SOURCE, enlarged_digits
from experiments.data.stored_images import StoredImages, blocks
from experiments.files import check_private, make_private

# What the checksum of a data set is about.
CONTENTS = ("train_images", "train_labels", "test_images", "test_labels", "class_names")
CONTENTS += ("validation_images", "validation_labels")  # which not all have
# What is kept of a data set of TFDS whose images stay in its files.
INDEX = ("train_labels", "test_labels", "source", "checksum")


def checksum(*arrays):
    """Returns 32 hexadecimal digits that identify the contents of arrays: part of a SHA-256.

    Stored images have the checksum of the array that they stand for.
    """
    digest = hashlib.sha256()
    for array in arrays:
        # Text is as wide as its longest word, whoever has made the array.
        array = np.char.encode(array, "utf-8") if array.dtype.kind == "U" else array
        digest.update(f"{array.dtype.str} {array.shape};".encode())
        for block in blocks(array):
            digest.update(block)
    return digest.hexdigest()[:32]


def checksum_of(arrays):
    """Returns the checksum of the arrays of a data set, by name."""
    return checksum(*(arrays[name] for name in CONTENTS if name in arrays))


def cache_file(name, cache_dir):
    """Returns the path under which a data set is cached in a cache folder."""
    return os.path.join(os.path.expanduser(cache_dir), "datasets", name.replace("/", "+") + ".npz")


def cached_or_read(name, data_dir, cache_dir, resident_bytes=math.inf):
    """Returns the arrays of the digits or of a data set of TFDS, from the cache if they are there.

    Args:
      name, data_dir, cache_dir, resident_bytes: see :func:`experiments.data.datasets.load`.
    """
    path = cache_file(name, cache_dir)
    for folder in (os.path.dirname(path), os.path.dirname(os.path.dirname(path))):
        check_private(pathlib.Path(folder))
    arrays = _read_cache(path, name, resident_bytes) if os.path.exists(path) else None
    if name == "digits":  # cached because the import of scikit-learn takes seconds
        arrays = arrays or _write_cache(path, enlarged_digits())
    elif not arrays or (data_dir and not str(arrays["source"]).endswith(f" from {data_dir}")):
        index = path.removesuffix(".npz") + ".index.npz"
        known = _read_index(index) if os.path.exists(index) else {}
        arrays = tfds.read(name, data_dir, path, resident_bytes, known)
        if not isinstance(arrays["train_images"], StoredImages):
            arrays = _write_cache(path, arrays)
        elif "checksum" not in arrays:
            # Images stay where they are. Their labels and checksum take a pass over all of them.
            arrays["checksum"] = np.array(checksum_of(arrays))
            _write(index, {name: arrays[name] for name in INDEX})
    return arrays


def _read_index(path):
    try:
        with npz.opened(path) as stored:
            return {key: stored[key] for key in INDEX}
    except Exception as error:  # see _read_cache
        raise _bad_cache(path, error) from error


def _read_cache(path, name, resident_bytes):
    try:
        with npz.opened(path, resident_bytes) as stored:
            arrays = npz.check({key: stored[key] for key in npz.ARRAY_SPECS})
            digest = str(stored["checksum"]) if "checksum" in stored else ""
        if digest and digest != checksum_of(arrays):
            raise ValueError("its arrays have another checksum")
        start = DIGITS_SOURCE if name == "digits" else f"tfds {name} "
        if not str(arrays["source"]).startswith(start):
            raise ValueError(f"it does not hold {name}")
    except Exception as error:  # zipfile, zlib and NumPy raise many types for a damaged file
        raise _bad_cache(path, error) from error
    return arrays


def _bad_cache(path, error):
    return UserError(f"bad data set cache {path}: {first_line(error)}; delete this file")


def _write_cache(path, arrays):
    """Writes the arrays where possible, and returns them."""
    _write(path, arrays | {"checksum": checksum_of(arrays)})
    return arrays


def _write(path, arrays):
    folder = os.path.dirname(path)
    try:
        make_private(pathlib.Path(os.path.dirname(folder)), os.path.basename(folder))
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            np.savez(os.path.join(scratch, "whole.npz"), **arrays)
            os.replace(os.path.join(scratch, "whole.npz"), path)
    except OSError as error:
        print(f"continuing without a cache: cannot write {path} ({error})", file=sys.stderr)
