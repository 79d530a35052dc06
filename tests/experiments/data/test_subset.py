"""Fewer training examples: a balanced part of a data set."""

import dataclasses

import numpy as np
import pytest
from helpers import TINY, load_digits, read_json, train

from experiments.config import UserError
from experiments.data import subset

LABELS = np.random.default_rng(0).choice(4, 500, p=[0.5, 0.3, 0.15, 0.05]).astype(np.int32)


def test_first_parts_of_the_balanced_order_are_balanced():
    order = subset.balanced_order(LABELS)
    assert sorted(order) == list(range(500))
    there = np.bincount(LABELS)
    for n in range(1, 501):
        counts = np.bincount(LABELS[order[:n]], minlength=4)
        # Independent: as even as can be means that only used-up classes stay behind.
        left = counts[counts < there]
        assert left.size == 0 or left.max() - left.min() <= 1
        assert all(c == t or c >= counts.max() - 1 for c, t in zip(counts, there, strict=True)), n


def test_balanced_order_is_shuffled_within_classes():
    """Within a class the order is that of one fixed permutation of all examples."""
    shuffled = np.random.RandomState(20171026).permutation(500)
    order = subset.balanced_order(LABELS)
    for which in range(4):
        np.testing.assert_array_equal(
            order[LABELS[order] == which], shuffled[LABELS[shuffled] == which]
        )


def test_few_training_examples():
    whole = load_digits()
    twenty, ten = (subset.limit_training_examples(whole, n) for n in (20, 10))
    assert len(whole.train_labels) == 1365
    np.testing.assert_array_equal(np.bincount(twenty.train_labels), [2] * 10)
    np.testing.assert_array_equal(twenty.train_images[:10], ten.train_images)
    rows = [
        np.flatnonzero((whole.train_images == image).all((1, 2, 3)))
        for image in twenty.train_images
    ]
    for which, label in zip(rows, twenty.train_labels, strict=True):
        assert label in whole.train_labels[which]
    np.testing.assert_array_equal(twenty.test_images, whole.test_images)
    np.testing.assert_array_equal(twenty.validation_images, whole.validation_images)
    with pytest.raises(UserError, match="--train_examples=1366: digits has 1365 to train on"):
        subset.limit_training_examples(whole, 1366)


@pytest.mark.slow
def test_a_run_on_few_examples(tmp_path):
    config = dataclasses.replace(
        TINY,
        reconstruction=False,
        batch_size=10,
        steps=0,
        epochs=2,
        train_examples=30,
        workdir=str(tmp_path),
    )
    summary = train(config)
    assert (summary["train_examples"], summary["steps"]) == (30, 6)
    assert "--train_examples=30" in summary["command"]
    assert read_json(tmp_path / "config.json")["train_examples"] == 30


def test_classes_that_fall_out_are_said(capsys):
    subset.limit_training_examples(load_digits(), 10)
    assert not capsys.readouterr().err
    subset.limit_training_examples(load_digits(), 9)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("--train_examples=9: class ") and "has no training images" in line


def test_sets_of_labels_are_refused():
    whole = load_digits()
    sets = whole._replace(train_labels=np.eye(10, dtype=np.uint8)[whole.train_labels])
    assert subset.limit_training_examples(sets, 0) is sets
    with pytest.raises(UserError, match="--train_examples=5 needs images of one class each"):
        subset.limit_training_examples(sets, 5)
