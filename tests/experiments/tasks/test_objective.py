"""Class weights and the balanced sampler."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import QUICK, metrics_rows, prepare_run, train

from capsjax.train import make_gradient
from experiments.config import UserError
from experiments.data import batching
from experiments.data.datasets import Dataset
from experiments.tasks.objective import balanced_weights
from experiments.training.setup import initial_state

RNG = np.random.default_rng(0)
LABELS = np.repeat(np.int32([0, 1, 3]), (40, 5, 2))  # class 2 has none


def made_up(labels=LABELS):
    images = RNG.integers(0, 256, (len(labels), 28, 28, 1), np.uint8)
    parts = (images, labels)
    return Dataset("made up", "", *parts * 3, tuple("abcd"))


def test_weights_make_classes_count_alike():
    weights = balanced_weights(LABELS, 4)
    np.testing.assert_allclose(weights[LABELS].mean(), 1, rtol=1e-6)
    totals = [weights[LABELS[LABELS == k]].sum() for k in (0, 1, 3)]
    np.testing.assert_allclose(totals, len(LABELS) / 3, rtol=1e-6)
    assert weights[2] == 0


def test_the_gradient_is_that_of_repeated_examples():
    """Of two classes, 2 and 6 images, weights are those of taking the rare class three times."""
    labels = np.repeat(np.int32([0, 1]), (2, 6))
    dataset = made_up(labels)
    plain = prepare_run(QUICK, dataset)
    config = dataclasses.replace(QUICK, class_weights="balanced")
    weighted = prepare_run(config, dataset)
    variables = initial_state(plain).variables
    images = jnp.float32(dataset.train_images) / 255
    key = jax.random.key(0)
    found, metrics = jax.jit(make_gradient(weighted.loss))(
        variables, images, jnp.asarray(labels), key
    )
    rows = np.array([0, 1] * 3 + list(range(2, 8)))
    want, usual = jax.jit(make_gradient(plain.loss))(
        variables, images[rows], jnp.asarray(labels[rows]), key
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * float(jnp.abs(b).max()) + 1e-9)
    np.testing.assert_allclose(metrics["loss"], usual["loss"], rtol=1e-5)
    assert weighted.measure is not weighted.loss  # evaluation is not weighted


def test_the_balanced_sampler_visits_classes_and_their_examples_equally():
    key = jax.random.key(3)
    orders = np.asarray(batching.balanced_orders(key, 1, jnp.asarray(LABELS), 4, 5))
    assert orders.shape == (5, 47)
    for rows in orders:
        visits = np.bincount(LABELS[rows], minlength=4)
        assert visits[2] == 0 and sorted(visits[[0, 1, 3]]) == [15, 16, 16]
        for k in (0, 1, 3):
            own = np.bincount(rows, minlength=47)[LABELS == k]
            assert own.max() - own.min() <= 1 and own.sum() == visits[k]
    assert len({rows.tobytes() for rows in orders}) == 5
    halves = [LABELS[rows[:23]] for rows in orders]
    assert all(len(np.unique(half)) == 3 for half in halves)  # not one class after another
    again = np.asarray(batching.balanced_orders(key, 5, jnp.asarray(LABELS), 4, 1))
    np.testing.assert_array_equal(again[0], orders[0])  # epoch 5 is the first of block 1


@pytest.mark.slow
def test_a_resumed_balanced_run_is_the_same_bit_for_bit(tmp_path):
    config = dataclasses.replace(QUICK, sampler="balanced", class_weights="balanced", log_every=1)
    whole = dataclasses.replace(config, steps=3, workdir=str(tmp_path / "whole"))
    parts = dataclasses.replace(config, workdir=str(tmp_path / "parts"))
    train(whole)
    train(dataclasses.replace(parts, steps=2))
    train(dataclasses.replace(parts, steps=3))
    losses = [
        [row["loss"] for row in metrics_rows(tmp_path / name) if "loss" in row]
        for name in ("whole", "parts")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 3


@pytest.mark.slow
def test_runs_from_before_the_flags_are_continued(tmp_path):
    config = dataclasses.replace(QUICK, steps=1, workdir=str(tmp_path))
    train(config)
    path = tmp_path / "config.json"
    stored = json.loads(path.read_text())
    for name in ("sampler", "class_weights", "image_size"):
        del stored[name]
    path.write_text(json.dumps(stored))
    train(config)
    with pytest.raises(UserError, match="sampler=uniform there, balanced here"):
        train(dataclasses.replace(config, sampler="balanced"))
    train(config)  # config.json has the flags now
    with pytest.raises(UserError, match="sampler=uniform there, balanced here"):
        train(dataclasses.replace(config, sampler="balanced"))
    assert (
        config.default_workdir()
        != dataclasses.replace(config, sampler="balanced").default_workdir()
    )


def test_classes_are_balanced_once():
    twice = dataclasses.replace(QUICK, sampler="balanced", class_weights="balanced")
    with pytest.raises(UserError, match="rare classes would count twice over"):
        prepare_run(twice, made_up(LABELS))


def test_sets_of_labels_have_no_balance():
    sets = np.eye(4, dtype=np.uint8)[LABELS]
    for flags in ({"sampler": "balanced"}, {"class_weights": "balanced"}):
        with pytest.raises(UserError, match="needs images of one class each"):
            prepare_run(dataclasses.replace(QUICK, **flags), made_up(sets))
