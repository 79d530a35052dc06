"""Subsets of the training data, for learning from few examples."""

import sys

import numpy as np

from experiments import UserError
from experiments.data.datasets import Dataset
from experiments.data.labels import absent_classes
from experiments.data.stored_images import take


def limit_training_examples(dataset: Dataset, count: int) -> Dataset:
    """Keeps the first ``count`` training examples of :func:`balanced_order`; 0 keeps all.

    Raises:
      UserError: there are fewer examples, or they have sets of labels.
    """
    if not count:
        return dataset
    labels = dataset.train_labels
    if dataset.multi_label:
        raise UserError(
            f"--train_examples={count} needs images of one class each, and those of "
            f"{dataset.name} have sets of labels"
        )
    if count > len(labels):
        raise UserError(f"--train_examples={count}: {dataset.name} has {len(labels)} to train on")
    rows = balanced_order(labels)[:count]
    kept = labels[rows]
    if len(np.unique(kept)) < len(np.unique(labels)):
        absent = absent_classes(kept, dataset.class_names)
        print(f"--train_examples={count}: {absent}", file=sys.stderr)
    return dataset._replace(train_images=take(dataset.train_images, rows), train_labels=kept)


def balanced_order(labels: np.ndarray) -> np.ndarray:
    """Returns a permutation ``[N]`` every prefix of which is as balanced as possible.

    It is the same for all seeds. In a prefix, the numbers of examples of two classes differ by
    more than one only if the smaller class has no more examples.

    Args:
      labels: int ``[N]``.
    """
    # RandomState's numbers are frozen, see experiments.data.datasets.
    shuffled = np.random.RandomState(20171026).permutation(len(labels))
    rank = np.empty(len(labels), int)  # in its class
    for which in np.unique(labels):
        members = labels[shuffled] == which
        rank[members] = np.arange(members.sum())
    return shuffled[np.argsort(rank, kind="stable")]
