"""Images that are read where they are stored, in the place of an array in memory.

A :class:`StoredImages` is indexed like the array ``[N, H, W, C]`` that it stands for. Training
reads its batches ahead (:mod:`experiments.data.read_ahead`), everything else reads the rows that it
needs.
"""

import concurrent.futures
from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np

BLOCK = 1024  # images that are read together


class Reader(Protocol):
    """Where images are stored. Readers are sent to other processes if they decode."""

    shape: tuple[int, int, int, int]  # [N, H, W, C]
    decodes: bool  # whether reading takes longer than copying

    def __call__(self, row: int) -> np.ndarray:
        """Returns an image, uint8 ``[H, W, C]``."""


class InArray:
    """Images of an array: in the memory of the host, or mapped from a file."""

    decodes = False

    def __init__(self, images: np.ndarray):
        self.images, self.shape = images, images.shape

    def __call__(self, row: int) -> np.ndarray:
        """Returns an image."""
        return self.images[row]


class StoredImages:
    """Images uint8 ``[N, H, W, C]`` that are read when they are indexed, by the first axis.

    Args:
      reader: of all images there.
      rows: those that belong to this object, int ``[N]``; by default all.
    """

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, reader: Reader, rows: np.ndarray | None = None):
        self.reader = reader
        self.rows = np.arange(reader.shape[0]) if rows is None else rows
        self.shape = (len(self.rows), *reader.shape[1:])

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index) -> np.ndarray:
        rows = self.rows[index]
        if not rows.ndim:
            return self.reader(int(rows))
        if not self.reader.decodes or len(rows) < 2:
            return self.read(index)
        # Decoders of images and readers of files let other threads run.
        with concurrent.futures.ThreadPoolExecutor() as pool:
            return self._stacked(list(pool.map(self.reader, rows.tolist())))

    def read(self, index) -> np.ndarray:
        """Returns the images of some rows as indexing does, in the thread of the caller alone."""
        rows = self.rows[index]
        if isinstance(self.reader, InArray):
            return self.reader.images[rows]
        return self._stacked([self.reader(row) for row in rows.tolist()])

    def _stacked(self, images):
        return np.stack(images) if images else np.empty((0, *self.shape[1:]), np.uint8)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self[:], dtype)


class InPart:
    """Stored images of which some places of every batch are read, and the others are zero.

    Args:
      images: all of them.
      places: of a batch, those to read.
      batch_size: of the batches that are indexed, one or several at a time.
    """

    def __init__(self, images: StoredImages, places: np.ndarray, batch_size: int):
        self._images, self._places, self._size = images, places, batch_size
        self.shape = images.shape

    def __len__(self):
        return len(self._images)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        read = np.isin(np.arange(len(rows)) % self._size, self._places)
        found = np.zeros((len(rows), *self.shape[1:]), np.uint8)
        found[read] = self._images[rows[read]]
        return found


def take(images: np.ndarray | StoredImages, index: np.ndarray) -> np.ndarray | StoredImages:
    """Returns some rows of images: of those in memory a copy, of stored ones the same reader."""
    if isinstance(images, StoredImages):
        return StoredImages(images.reader, images.rows[index])
    return images[index]


def blocks(images: np.ndarray | StoredImages) -> Iterator[np.ndarray]:
    """Yields all images in arrays of which one at a time need be in memory."""
    if isinstance(images, StoredImages):
        yield from (images[start : start + BLOCK] for start in range(0, len(images), BLOCK))
    else:
        yield np.ascontiguousarray(images)


def leave_stored(arrays: Mapping, resident_bytes: float) -> dict:
    """Returns the arrays of a data set, with stored images if together they are large.

    Args:
      arrays: by name, those of images ending in ``_images``.
      resident_bytes: the most that images in memory may have.
    """
    images = {name: x for name, x in arrays.items() if name.endswith("_images")}
    if sum(np.prod(x.shape, dtype=float) for x in images.values()) <= resident_bytes:
        return dict(arrays)
    return {**arrays} | {
        name: x if isinstance(x, StoredImages) else StoredImages(InArray(x))
        for name, x in images.items()
    }
