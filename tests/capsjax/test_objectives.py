"""Losses by name and losses of whole networks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import reference_routing
from helpers import filled
from objective_cases import CAPSNET, CNN, Scores, batch, expected_loss
from small_networks import create_model

from capsjax import (
    TrainState,
    adam,
    capsnet_loss,
    cross_entropy_loss,
    make_train_step,
)
from capsjax.losses import (
    cross_entropy_of_lengths,
    cross_entropy_of_logits,
    margin_loss,
    spread_loss,
)
from capsjax.objectives import LOGIT_LOSSES, LOSSES, score_loss

TARGETS = {"one": [1, 0, 0, 0], "two": [1, 0, 1, 0], "none": [0, 0, 0, 0], "soft": [0.3, 0.7, 0, 1]}
LENGTHS = np.array([0.35, 0.62, 0.05, 0.97])


def test_losses_by_name(x64):
    """All losses have the same arguments; only the margin of the spread loss uses progress."""
    targets = np.array(TARGETS["two"], float)
    expected = {
        "margin": lambda progress: margin_loss(LENGTHS, targets),
        "spread": lambda progress: spread_loss(LENGTHS, targets, 0.2 + 0.7 * progress),
        "cross_entropy": lambda progress: cross_entropy_of_lengths(LENGTHS, targets),
    }
    assert list(LOSSES) == list(expected)
    for progress in (0.0, 0.5, 1.0):
        for name, exact in expected.items():
            got = score_loss(name)(LENGTHS, targets, progress)
            np.testing.assert_array_equal(got, exact(progress))
            if progress == 1:
                np.testing.assert_array_equal(score_loss(name)(LENGTHS, targets), got)
        got = score_loss("cross_entropy", logit=True)(LENGTHS, targets, progress)
        np.testing.assert_array_equal(got, cross_entropy_of_logits(LENGTHS, targets))


def test_unknown_losses_are_rejected():
    assert LOGIT_LOSSES.keys() == {"cross_entropy"}
    for name in ("margin", "spread"):
        with pytest.raises(ValueError, match=f"{name!r} needs scores in .* use cross_entropy$"):
            score_loss(name, logit=True)
    for logit in (False, True):
        with pytest.raises(ValueError, match="margin, spread, cross_entropy, not 'hinge'"):
            score_loss("hinge", logit=logit)
    for table in (LOSSES, LOGIT_LOSSES):
        with pytest.raises(TypeError):
            table["hinge"] = margin_loss


# Bugs: mean for sum in either term, the decoder masked by its own guess, dropped weights.
@pytest.mark.parametrize(
    "config, weights",
    [
        (CAPSNET, {}),
        (CAPSNET, {"margin_weight": 1 / 20, "reconstruction_weight": 0.01}),
        (dataclasses.replace(CAPSNET, decoder=None), {"margin_weight": 0.5}),
    ],
    ids=["paper", "weights", "no decoder"],
)
def test_capsnet_loss_equals_reference(config, weights):
    model = create_model(config)
    params = filled(model)
    images, _ = batch(config, 3)
    images[1:] = images[0]
    labels = np.arange(3)  # one of them right
    losses, metrics = jax.jit(capsnet_loss(model, **weights))(params, images, labels)
    np.testing.assert_array_equal(metrics["loss"], losses)
    for n in range(3):
        exact = expected_loss(params, images[n], labels[n], **weights)
        assert metrics.keys() == exact.keys()
        for name, value in exact.items():
            np.testing.assert_allclose(metrics[name][n], value, rtol=1e-4, err_msg=name)
    assert sum(metrics["accuracy"]) == 1


# Of scores and label, and of the progress of training.
SCORE_LOSSES = {
    "margin": lambda a, label, progress: reference.margin_loss(a, np.eye(len(a))[label]),
    "spread": lambda a, label, progress: reference_routing.spread_loss(
        a, label, 0.2 + 0.7 * progress
    ),
    "cross_entropy": lambda a, label, progress: reference_routing.cross_entropy_of_probabilities(
        a, label
    ),
}


@pytest.mark.parametrize("name", SCORE_LOSSES)
def test_score_losses_equal_reference(name):
    scores = np.array([0.3, 0.5, 0.15, 0.9], np.float32)
    images, labels = np.zeros((4, 1, 1, 1), np.float32), np.arange(4)
    loss = jax.jit(capsnet_loss(Scores, loss=name, margin_weight=0.5))
    for progress in (0.0, 0.25, 1.0, None):  # None: as at the end
        options = {} if progress is None else {"progress": progress}
        losses, metrics = loss(scores, images, labels, None, **options)
        end = 1 if progress is None else progress
        exact = [SCORE_LOSSES[name](scores.astype(float), label, end) for label in labels]
        np.testing.assert_allclose(metrics[f"{name}_loss"], exact, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(losses, 0.5 * np.array(exact), rtol=1e-5, atol=1e-7)
        assert metrics.keys() == {f"{name}_loss", "loss", "accuracy"}
        np.testing.assert_array_equal(metrics["accuracy"], [0, 0, 0, 1])


def test_cross_entropy_of_logits():
    scores = np.array([-2.0, 3.0, 0.5], np.float32)
    images, labels = np.zeros((3, 1, 1, 1), np.float32), np.arange(3)
    loss = capsnet_loss(Scores, loss="cross_entropy", logit=True)
    losses, metrics = jax.jit(loss)(scores, images, labels)
    exact = [reference.cross_entropy(scores.astype(float), label) for label in labels]
    np.testing.assert_allclose(losses, exact, rtol=1e-5)
    np.testing.assert_array_equal(metrics["cross_entropy_loss"], losses)


def test_labels_of_another_rank_are_refused():
    scores = np.zeros(3, np.float32)
    images, labels = np.zeros((3, 1, 1, 1), np.float32), np.arange(3)[:, None]
    for loss in (capsnet_loss(Scores), cross_entropy_loss(Scores)):
        with pytest.raises((AssertionError, ValueError)):
            loss(scores, images, labels)


def test_losses_of_other_scores_are_rejected():
    for name in ("margin", "spread"):
        with pytest.raises(ValueError, match=f"{name!r} needs scores in .0, 1., not logits"):
            capsnet_loss(Scores, loss=name, logit=True)
    with pytest.raises(ValueError, match="margin, spread, cross_entropy, not 'hinge'"):
        capsnet_loss(Scores, loss="hinge")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_label_that_is_no_class_has_no_number_inside_jit(smoothing):
    model = create_model(CNN)
    loss = jax.jit(cross_entropy_loss(model, label_smoothing=smoothing))
    images, _ = batch(CNN, 5)
    labels = np.array([0, CNN.num_classes, -1, -CNN.num_classes, 1])
    losses, metrics = loss(filled(model), images, labels)
    np.testing.assert_array_equal(np.isnan(losses), [False, True, True, True, False])
    assert not metrics["accuracy"][1:4].any()


def test_cross_entropy_loss():
    model = create_model(CNN)
    params = filled(model)
    images, labels = batch(CNN, 5)
    losses, metrics = jax.jit(cross_entropy_loss(model))(params, images, labels)
    logits = np.asarray(jax.jit(model.apply)(params, images).scores, float)
    exact = [reference.cross_entropy(*pair) for pair in zip(logits, labels)]
    assert metrics.keys() == {"loss", "accuracy"}
    np.testing.assert_allclose(losses, exact, rtol=1e-5)
    np.testing.assert_array_equal(metrics["loss"], losses)
    np.testing.assert_array_equal(metrics["accuracy"], np.argmax(logits, axis=1) == labels)


@pytest.mark.parametrize(
    "labels, message",
    [
        ([0, 1, 4], "label 4 is no class: 4 classes are 0 to 3"),
        ([0, -1, 2], "label -1 is no class"),
        ([1], "there are 1 labels for 3 images"),
        ([0, 1, 2, 3], "there are 4 labels for 3 images"),
        ([0.0, 1.0, 2.0], r"integers \[B\], .* not float64 of shape \[3\]"),
        (np.eye(4)[:3], r"not float64 of shape \[3, 4\]"),
    ],
)
@pytest.mark.parametrize("make", [capsnet_loss, cross_entropy_loss])
def test_labels_that_are_no_class_are_refused_outside_jit(make, labels, message):
    config = dataclasses.replace(CAPSNET if make is capsnet_loss else CNN, num_classes=4)
    model = create_model(config)
    loss, params = make(model), filled(model)
    images = np.zeros((3, *config.image_shape), np.float32)
    labels = np.array(labels)
    with pytest.raises(ValueError, match=message):
        loss(params, images, labels)
    optimizer = adam()
    state = TrainState(np.int32(0), params, optimizer.init(params))
    with pytest.raises(ValueError, match=message):
        make_train_step(loss, optimizer)(state, images, labels, None)
    # Values are unknown inside, types and shapes are not.
    if labels.dtype.kind == "f" or len(labels) != len(images):
        with pytest.raises(ValueError, match="integers|images"):
            jax.eval_shape(loss, params, images, labels)
    else:
        jax.eval_shape(loss, params, images, labels)
    with pytest.raises(ValueError, match="not list"):
        loss(params, images, [0, 1, 2])


def test_smoothed_labels_are_shared_by_all_classes():
    """Both losses against sums over classes in float64."""
    scores, labels = np.random.default_rng(0).uniform(0.1, 0.9, 3), np.array([0, 2, 1, 1])
    targets = np.full((4, 3), 0.3 / 3)
    targets[np.arange(4), labels] += 0.7
    of_logits = -np.log(np.exp(scores) / np.exp(scores).sum())
    of_lengths = -np.log(scores / scores.sum())
    cases = [
        (cross_entropy_loss(Scores, label_smoothing=0.3), of_logits),
        (capsnet_loss(Scores, loss="cross_entropy", logit=True, label_smoothing=0.3), of_logits),
        (capsnet_loss(Scores, loss="cross_entropy", label_smoothing=0.3), of_lengths),
    ]
    for loss, costs in cases:
        images = np.zeros((4, 1, 1, 1), np.float32)
        losses, metrics = loss(jnp.float32(scores), images, jnp.asarray(labels))
        np.testing.assert_allclose(losses, targets @ costs, rtol=1e-5)
        np.testing.assert_array_equal(metrics["accuracy"], scores.argmax() == labels)
    for name in ("margin", "spread"):
        with pytest.raises(ValueError, match="smoothed"):
            capsnet_loss(Scores, loss=name, label_smoothing=0.1)
