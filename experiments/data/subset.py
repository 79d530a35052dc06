"""A part of the training data, for learning from few examples."""

import numpy as np

from experiments.config import UserError
from experiments.data.datasets import Dataset


def limit(dataset: Dataset, count: int) -> Dataset:
    """With the first ``count`` training examples of :func:`balanced_order`; 0: all, as they are.

    Raises:
      UserError: there are not so many.
    """
    if not count:
        return dataset
    labels = dataset.train_labels
    if count > len(labels):
        raise UserError(f"--train_examples={count}: {dataset.name} has {len(labels)} to train on")
    rows = balanced_order(labels)[:count]
    return dataset._replace(train_images=dataset.train_images[rows], train_labels=labels[rows])


def balanced_order(labels: np.ndarray) -> np.ndarray:
    """A permutation ``[N]`` in which any first part has as many of each class as can be.

    The same for all seeds. Numbers of two classes in a first part differ by more than one only
    where the smaller has no more examples.

    Args:
      labels: int ``[N]``.
    """
    # RandomState's stream is frozen, see experiments.data.datasets.
    shuffled = np.random.RandomState(20171026).permutation(len(labels))
    rank = np.empty(len(labels), int)  # in its class
    for which in np.unique(labels):
        members = labels[shuffled] == which
        rank[members] = np.arange(members.sum())
    return shuffled[np.argsort(rank, kind="stable")]
