"""The arrays of a data set, and reading them from a file: ``--dataset=path/to/arrays.npz``."""

import collections
import contextlib
import math
import os
import stat
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping

import numpy as np

from experiments import UserError
from experiments.data import labels, pixels
from experiments.data.errors import first_line
from experiments.data.stored_images import StoredImages
from experiments.files import check_memory, one_line
from experiments.files.forms import MOST_CLASSES

ARRAY_SPECS = {  # dtype and rank
    "train_images": (np.uint8, 4),
    "train_labels": (np.int32, 1),
    "test_images": (np.uint8, 4),
    "test_labels": (np.int32, 1),
    "class_names": (np.str_, 1),
    "source": (np.str_, 0),
}
_ZIP_SIZES = 26  # bytes from the start of a local header of a ZIP file to two lengths, 16 bits each
_FLAGS = sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_BINARY"))
SPLITS = ("train", "test", "validation")  # the last one is optional


def read(path: str, resident_bytes: float = math.inf) -> dict[str, np.ndarray]:
    """Returns the images, labels, class names and source of a file of ``numpy.savez``.

    The file contains train_images, train_labels, test_images and test_labels, and optionally
    validation_images, validation_labels, class_names, text ``[J]``, and multi_label, True if labels
    ``[N, J]`` are sets of classes; :func:`experiments.data.pixels.as_images` and
    :func:`experiments.data.labels.as_labels` say what they may hold. What is converted is said on
    standard error.

    Args:
      path: of the file.
      resident_bytes: see :func:`opened`.

    Raises:
      UserError: the file cannot be read or contains something else.
    """
    try:
        with opened(os.path.expanduser(path), resident_bytes) as stored:
            arrays, notes = complete(path, stored)
        check(arrays)
    except Exception as error:  # zipfile, zlib and NumPy raise many types for a damaged file
        reason = (isinstance(error, OSError) and error.strerror) or first_line(error)
        raise UserError(f"--dataset={path}: {reason}") from error
    for note in notes:
        print(f"--dataset={path}: {one_line(note)}", file=sys.stderr)
    return arrays


@contextlib.contextmanager
def opened(path: str, resident_bytes: float = math.inf) -> Iterator[Mapping[str, np.ndarray]]:
    """Gives the arrays of a file of ``numpy.savez`` after a look at their sizes.

    Args:
      path: of the file.
      resident_bytes: if images have more bytes together, those that are stored as uint8 and without
        compression are memory maps in place of arrays in memory.

    Raises:
      ValueError: it is no regular file, or its arrays would not fit into the memory.
      UserError: as for the memory.
    """
    with open(os.open(path, os.O_RDONLY | _FLAGS), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("not a regular file")
        found = np.load(file, allow_pickle=False)
        if not hasattr(found, "zip"):
            raise ValueError("a single array; save several with numpy.savez")
        with found as stored:
            need = {name: _bytes(stored.zip, name) for name in stored.zip.namelist()}
            images = [name for name in need if name.endswith("_images.npy")]
            large = sum(need[name] for name in images) > resident_bytes
            maps = {name: _mapped(file, stored.zip, name) for name in images if large}
            maps = {name: array for name, array in maps.items() if array is not None}
            # An array is there twice while it is converted.
            loaded = sum(need[name] for name in need.keys() - maps.keys())
            check_memory(2 * loaded, "unpacking the arrays", "save fewer or smaller images")
            maps = {name.removesuffix(".npy"): array for name, array in maps.items()}
            yield collections.ChainMap(maps, stored) if maps else stored


def _mapped(file, archive, name: str) -> np.memmap | None:
    """Maps an array of images, or returns None where its bytes are not those of the file.

    Raises:
      ValueError: the file is damaged.
    """
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED:
        return None
    with archive.open(name) as member:  # which also checks the header of the entry
        shape, fortran, dtype = _header(member)
        header = member.tell()
    if dtype != np.uint8 or fortran or not math.prod(shape):
        return None
    if header + math.prod(shape) != entry.file_size:
        raise ValueError(f"{name} has {entry.file_size} bytes and not those of {shape}")
    # The sizes of the local header may differ from those of the directory of the archive.
    file.seek(entry.header_offset + _ZIP_SIZES)
    start = file.tell() + 4 + sum(struct.unpack("<HH", file.read(4)))
    return np.memmap(file, dtype, "r", start + header, shape)


def _bytes(archive, name: str) -> int:
    """The size of an array, by its header and as the archive says."""
    with archive.open(name) as file:
        try:
            shape, _, dtype = _header(file)
        except (ValueError, TypeError, EOFError):  # reported when the array is read
            return archive.getinfo(name).file_size
    return max(math.prod(shape) * dtype.itemsize, archive.getinfo(name).file_size)


def _header(file) -> tuple:
    """Shape, order and type of an array, from the beginning of its file."""
    version = np.lib.format.read_magic(file)
    return getattr(np.lib.format, f"read_array_header_{version[0]}_0", None)(file)


def check(arrays: dict) -> dict:
    """Returns the arrays unchanged after checking types, ranks, lengths, shapes and labels.

    Raises:
      ValueError: they do not have the types and ranks of :data:`ARRAY_SPECS` or do not fit
        together.
    """
    sets = arrays["train_labels"].ndim == 2
    count = len(arrays["class_names"])
    for key, (kind, rank) in ARRAY_SPECS.items():
        kind, rank = (np.uint8, 2) if sets and key.endswith("_labels") else (kind, rank)
        if arrays[key].dtype.type is not kind or arrays[key].ndim != rank:
            raise ValueError(f"{key} is not {kind.__name__} of rank {rank}")
    for split in SPLITS:
        images, classes = (arrays.get(f"{split}_{what}") for what in ("images", "labels"))
        if split == "validation" and (images is None or not len(images) + len(classes)):
            continue
        if not 0 < len(images) == len(classes):
            raise ValueError(f"{len(images)} {split} images and {len(classes)} labels")
        if classes.ndim == 1 and not 0 <= classes.min() <= classes.max() < count:
            raise ValueError(f"{split} labels that are no class")
        if classes.ndim == 2 and (classes.shape[1] != count or classes.max() > 1):
            raise ValueError(f"{split} labels that are no sets of classes")
        if images.shape[1:] != arrays["train_images"].shape[1:]:
            raise ValueError(f"train and {split} images differ in shape")
    return arrays


def complete(path: str, stored: Mapping[str, np.ndarray]) -> tuple[dict, list[str]]:
    """Returns all arrays of a data set, converted, and a line about each conversion.

    Args:
      path: of the data set, for its source.
      stored: arrays by name, as in a file of :func:`read`.

    Raises:
      ValueError: one is missing, or means something else.
    """
    splits = [split for split in SPLITS if split != "validation" or "validation_images" in stored]
    names = [f"{split}_{what}" for what in ("images", "labels") for split in splits]
    missing = [name for name in names if name not in stored]
    if missing:
        raise ValueError(f"no array {missing[0]}; there are {', '.join(stored) or 'none'}")
    images, classes = names[: len(splits)], names[len(splits) :]
    arrays, notes = {}, []
    for name in images:
        arrays[name], said = pixels.as_images(name, _array(stored, name))
        notes += said
    class_names = labels.as_text(_array(stored, "class_names")) if "class_names" in stored else None
    if class_names is not None and class_names.ndim != 1:
        raise ValueError(
            f"class_names have the shape {class_names.shape}, not one name a class [J]"
        )
    convert = labels.as_labels
    if "multi_label" in stored and _array(stored, "multi_label").any():
        convert = labels.as_label_sets
    values, arrays["class_names"], said = convert(
        {name: _array(stored, name) for name in classes}, class_names
    )
    arrays |= dict(zip(classes, values, strict=True))
    for name in arrays["class_names"].tolist():
        if not name or not name.isprintable():
            raise ValueError(f"class_names has {name!r}, which is empty or not printable")
    if len(arrays["class_names"]) < 2:
        raise ValueError("there is one class only, and nothing to tell apart")
    (name, count), *_ = collections.Counter(arrays["class_names"].tolist()).most_common(1)
    if count > 1:
        raise ValueError(f"class_names has {name!r} {count} times")
    if len(arrays["class_names"]) > MOST_CLASSES:
        raise ValueError(f"{len(arrays['class_names']):,} classes, more than {MOST_CLASSES:,}")
    checksum = 0
    for name in names:
        # The checksum of the data set says more, and stored images would be read twice for it.
        if not isinstance(arrays[name], StoredImages):
            checksum = zlib.crc32(np.ascontiguousarray(arrays[name]), checksum)
    arrays["source"] = np.array(f"arrays {checksum:08x} from {path}")
    return check(arrays), notes + said


def _array(stored, name):
    try:
        return stored[name]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        # Reading them would run code that the file contains.
        raise ValueError(
            f"{name} is an array of Python objects, which is not read, for safety; save "
            f"np.array({name}.tolist()), of text or numbers and, for images, of one size"
        ) from error
