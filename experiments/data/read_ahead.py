"""Batches of stored images, read ahead of training by Grain.

An element of the data set of Grain is the batch of a step, so that what Grain costs is paid once
for each batch. The rows of a step are a function of the seed and the step, see
:mod:`experiments.data.batching`. Grain therefore draws nothing, and its state is the number of the
next step, which every checkpoint has: a resumed run begins to read at its step.
"""

import importlib.util
from collections.abc import Iterator

import numpy as np
from absl import flags

from experiments import UserError
from experiments.data.stored_images import StoredImages

INSTALL = "pip install -r requirements-grain.txt"
AHEAD = 4  # batches that are read before they are asked for, at least


def check_grain(dataset: str) -> None:
    """Refuses to train on stored images without Grain.

    Args:
      dataset: name of the data set.

    Raises:
      UserError: the package is missing.
    """
    try:
        found = importlib.util.find_spec("grain") is not None
    except ValueError:  # None in sys.modules
        found = False
    if not found:
        raise UserError(
            f"the images of {dataset} are to be read from disk in training, which needs the "
            f"package grain: {INSTALL}; or keep them in memory, --input=device"
        )


class Batches:
    """The batches of some steps, as Grain takes a source of random access.

    Args:
      images: of the training data.
      labels: of the training data, ``[N, ...]``.
      rows: of each step, int ``[steps, B]``.
    """

    def __init__(self, images: StoredImages, labels: np.ndarray, rows: np.ndarray):
        self._images, self._labels, self._rows = images, labels, rows

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        rows = self._rows[n]
        return self._images.read(rows), self._labels[rows]


def read_ahead(
    images: StoredImages, labels: np.ndarray, rows: np.ndarray, workers: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the images and labels of some steps, in order, read ahead in threads or processes.

    Args:
      images, labels, rows: see :class:`Batches`.
      workers: number of processes that read images which have to be decoded; 0: threads alone.
    """
    import grain

    threads = max(AHEAD, 2 * workers)
    batches = grain.MapDataset.source(Batches(images, labels, rows)).to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    )
    if workers and images.reader.decodes:
        if not flags.FLAGS.is_parsed():  # as in a program without any, and Grain has flags
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        batches = batches.mp_prefetch(options)
    iterator = iter(batches)
    try:
        yield from iterator
    finally:
        iterator.close()  # a run may end while batches are being read
