"""Losses: each paper's equation and the summed squared error."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import reference_routing

from capsjax.losses import (
    cross_entropy,
    cross_entropy_of_lengths,
    cross_entropy_of_logits,
    margin_loss,
    reconstruction_loss,
    spread_loss,
    spread_margin,
)
from capsjax.masks import argmax_mask, label_mask, mask_capsules

CLASSES = [1, 2, 10]
TARGETS = {"one": [1, 0, 0, 0], "two": [1, 0, 1, 0], "none": [0, 0, 0, 0], "soft": [0.3, 0.7, 0, 1]}
LENGTHS = np.array([0.35, 0.62, 0.05, 0.97])
EPSILON = 1e-7  # of cross_entropy_of_lengths


def both(loss, *args):
    return jax.jit(jax.value_and_grad(loss))(*args)


@pytest.mark.parametrize("J", CLASSES)
def test_margin_loss(x64, J):
    rng = np.random.default_rng(J)
    lengths, targets = rng.uniform(0, 1, J), np.eye(J)[J // 2]
    value, gradient = both(margin_loss, lengths, targets)
    np.testing.assert_allclose(value, reference.margin_loss(lengths, targets), rtol=1e-12)
    exact = reference.gradient(lambda x: reference.margin_loss(x, targets), lengths)
    np.testing.assert_allclose(gradient, exact, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
def test_margin_loss_of_several_or_no_classes(x64, targets):
    targets = np.array(targets, float)
    exact = reference.margin_loss(LENGTHS, targets)
    np.testing.assert_allclose(margin_loss(LENGTHS, targets), exact, rtol=1e-12)


def test_margin_loss_parameters(x64):
    targets = np.array(TARGETS["one"], float)
    for changes in ({"m_plus": 0.6}, {"m_minus": 0.4}, {"down_weight": 0.9}):
        exact = reference.margin_loss(LENGTHS, targets, **changes)
        assert abs(exact - reference.margin_loss(LENGTHS, targets)) > 0.05
        np.testing.assert_allclose(margin_loss(LENGTHS, targets, **changes), exact, rtol=1e-12)


def test_margin_loss_is_zero_between_the_margins():
    lengths, targets = jnp.array([0.91, 0.09, 0.0]), jnp.array([1.0, 0.0, 0.0])
    value, gradient = both(margin_loss, lengths, targets)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


# Bugs: mean over the classes, no square, a softmax on the lengths first.
def test_bug_margin_loss_is_squared_and_summed_over_the_classes():
    lengths, targets = jnp.array([0.4, 0.3, 0.2, 0.1]), jnp.array([1.0, 0.0, 0.0, 0.0])
    expected = 0.5**2 + 0.5 * (0.2**2 + 0.1**2 + 0)  # by hand
    np.testing.assert_allclose(margin_loss(lengths, targets), expected, rtol=1e-6)
    # Ten absent classes cost ten times as much as one.
    one, ten = (margin_loss(jnp.full(n, 0.5), jnp.zeros(n)) for n in (1, 10))
    np.testing.assert_allclose(ten, 10 * one, rtol=1e-6)
    # A softmax of lengths in [0, 1) can't pass m+ = 0.9, so perfection would still cost.
    perfect = jnp.array([0.95] + 9 * [0.0])
    assert margin_loss(perfect, label_mask(jnp.array(0), 10)) == 0
    assert reference.margin_loss(jax.nn.softmax(perfect), np.eye(10)[0]) > 0.4


@pytest.mark.parametrize(
    "label, kept", [(np.uint8(3), [3]), (np.int8(-1), []), (np.int32(300), []), (np.int8(99), [99])]
)
def test_a_narrow_type_of_labels_chooses_one_class(label, kept):
    np.testing.assert_array_equal(np.flatnonzero(label_mask(label, 300)), kept)


def test_masks_are_of_as_many_capsules():
    for pose, mask in (((1, 4), 3), ((3, 4), 1)):
        with pytest.raises(AssertionError):
            mask_capsules(jnp.ones(pose), jnp.ones(mask))


@pytest.mark.parametrize("margin", [0.2, 0.55, 0.9])
@pytest.mark.parametrize("J", CLASSES)
def test_spread_loss(x64, J, margin):
    rng = np.random.default_rng(J)
    for label in {0, J // 2, J - 1}:
        scores, targets = rng.uniform(0, 1, J), np.eye(J)[label]
        value, gradient = both(spread_loss, scores, targets, margin)
        exact = reference_routing.spread_loss(scores, label, margin)
        np.testing.assert_allclose(value, exact, rtol=1e-12, atol=1e-14)
        exact = reference.gradient(
            lambda x, t=label: reference_routing.spread_loss(x, t, margin), scores
        )
        np.testing.assert_allclose(gradient, exact, rtol=1e-10, atol=1e-14)


def test_spread_loss_by_hand():
    # The true class leads by 0.3, -0.1 and 0.6; the margin asks for 0.5.
    scores, targets = jnp.array([0.3, 0.6, 0.7, 0.0]), jnp.array([0.0, 1.0, 0.0, 0.0])
    value, gradient = both(spread_loss, scores, targets, 0.5)
    np.testing.assert_allclose(value, 0.2**2 + 0.6**2, rtol=1e-5)
    np.testing.assert_allclose(gradient, [0.4, -1.6, 1.2, 0], rtol=1e-5)
    # With margin one and one other class: the squared hinge loss.
    np.testing.assert_allclose(spread_loss(jnp.zeros(2), jnp.array([1.0, 0]), 1.0), 1, rtol=1e-6)


def test_spread_loss_is_zero_beyond_the_margin():
    scores, targets = jnp.array([0.1, 0.75, 0.0]), jnp.array([0.0, 1.0, 0.0])
    value, gradient = both(spread_loss, scores, targets, 0.6)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_spread_margin_grows_from_one_fifth_to_nine_tenths():
    progress = jnp.linspace(0, 1, 11)
    margins = jax.jit(jax.vmap(spread_margin))(progress)
    np.testing.assert_allclose(margins, np.linspace(0.2, 0.9, 11), rtol=1e-6)
    for outside, margin in ((-1, 0.2), (-0.01, 0.2), (1.5, 0.9), (3, 0.9)):
        np.testing.assert_allclose(spread_margin(outside), margin, rtol=1e-6)


@pytest.mark.parametrize("J", CLASSES)
def test_cross_entropy_of_logits(x64, J):
    rng = np.random.default_rng(J)
    for label in {0, J // 2, J - 1}:
        scores, targets = rng.normal(0, 3, J), np.eye(J)[label]
        value, gradient = both(cross_entropy_of_logits, scores, targets)
        exact = reference.cross_entropy(scores, label)
        np.testing.assert_allclose(value, exact, rtol=1e-12, atol=1e-14)
        exact = reference.gradient(lambda x, t=label: reference.cross_entropy(x, t), scores)
        np.testing.assert_allclose(gradient, exact, rtol=1e-10, atol=1e-14)


def test_cross_entropy_of_extreme_logits():
    for scores, expected in (([1e4, 0.0], 1e4), ([0.0, 1e4], 0.0), ([-1e4, -1e4], np.log(2))):
        value, gradient = both(cross_entropy_of_logits, jnp.array(scores), jnp.array([0.0, 1.0]))
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("J", CLASSES)
def test_cross_entropy_of_lengths(x64, J):
    rng = np.random.default_rng(J)
    for label in {0, J // 2, J - 1}:
        scores, targets = rng.uniform(0.01, 1, J), np.eye(J)[label]
        value, gradient = both(cross_entropy_of_lengths, scores, targets)
        paper = reference_routing.cross_entropy_of_probabilities(scores, label)
        np.testing.assert_allclose(value, paper, rtol=2e-5, atol=2e-6)

        def exact(x, t=label):
            return reference_routing.cross_entropy_of_probabilities(x + EPSILON, t)

        np.testing.assert_allclose(value, exact(scores), rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(
            gradient, reference.gradient(exact, scores), rtol=1e-9, atol=1e-14
        )


def test_cross_entropy_of_lengths_is_finite_at_zero():
    targets = jnp.array([1.0, 0.0, 0.0, 0.0])
    value, gradient = both(cross_entropy_of_lengths, jnp.array([0.0, 0.5, 0.5, 0.0]), targets)
    np.testing.assert_allclose(value, -np.log(EPSILON), rtol=1e-6)
    assert np.isfinite(gradient).all() and gradient[0] < 0 < gradient[1]
    value, gradient = both(cross_entropy_of_lengths, jnp.zeros(4), targets)
    np.testing.assert_allclose(value, np.log(4), rtol=1e-6)
    np.testing.assert_allclose(gradient * EPSILON, [-0.75, 0.25, 0.25, 0.25], rtol=1e-5)
    value, gradient = both(cross_entropy_of_lengths, targets, targets)
    assert 0 <= value < 1e-6 and np.isfinite(gradient).all()


def test_cross_entropy_of_lengths_ignores_their_scale_and_softmax_does_not():
    scores, targets = jnp.array([0.2, 0.5, 0.1]), jnp.array([0.0, 1.0, 0.0])
    for loss, same in ((cross_entropy_of_lengths, True), (cross_entropy_of_logits, False)):
        assert np.allclose(loss(scores, targets), loss(scores / 2, targets), rtol=1e-5) == same


def test_soft_targets_mix_the_losses_of_their_classes(x64):
    targets = np.array([0.2, 0.0, 0.5, 0.3])
    for loss in (cross_entropy_of_logits, cross_entropy_of_lengths):
        mixed = sum(t * loss(LENGTHS, one) for t, one in zip(targets, np.eye(4)))
        np.testing.assert_allclose(loss(LENGTHS, targets), mixed, rtol=1e-12)


def test_cross_entropy_by_its_former_name_warns():
    targets = jnp.array(TARGETS["one"], float)
    with pytest.warns(DeprecationWarning, match="use cross_entropy_of_logits or") as caught:
        logits = cross_entropy(LENGTHS, targets, logit=True)
        lengths = cross_entropy(LENGTHS, targets, logit=False, epsilon=0.1)
    assert [warning.filename for warning in caught] == [__file__] * 2
    assert logits == cross_entropy_of_logits(LENGTHS, targets)
    assert lengths == cross_entropy_of_lengths(LENGTHS, targets, epsilon=0.1)
    assert lengths != cross_entropy_of_lengths(LENGTHS, targets)


def test_reconstruction_loss(x64):
    rng = np.random.default_rng(0)
    for shape in [(1, 1, 1), (3, 4, 2), (5,)]:
        a, b = rng.uniform(size=(2, *shape))
        value, gradient = both(reconstruction_loss, a, b)
        np.testing.assert_allclose(value, reference.reconstruction_loss(a, b), rtol=1e-12)
        exact = reference.gradient(functools.partial(reference.reconstruction_loss, image=b), a)
        np.testing.assert_allclose(gradient, exact, rtol=1e-10)


# Bug: the mean over the pixels makes the term 784 times too small.
def test_bug_reconstruction_loss_is_a_sum():
    image = jnp.full((28, 28, 1), 0.5)
    np.testing.assert_allclose(reconstruction_loss(0 * image, image), 784 / 4, rtol=1e-6)


def test_jit_and_vmap_change_nothing():
    rng = np.random.default_rng(0)
    lengths = rng.uniform(size=(5, 4)).astype(np.float32)
    targets = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0]]
    pose, image = rng.normal(size=(2, 5, 4, 3)).astype(np.float32)
    for function, args in [
        (margin_loss, (lengths, targets)),
        (spread_loss, (lengths, targets, np.linspace(0.2, 0.9, 5, dtype=np.float32))),
        (cross_entropy_of_logits, (lengths, targets)),
        (cross_entropy_of_lengths, (lengths, targets)),
        (reconstruction_loss, (pose, image)),
        (argmax_mask, (lengths,)),
        (mask_capsules, (pose, targets)),
    ]:
        loop = np.stack([function(*(x[n] for x in args)) for n in range(5)])
        np.testing.assert_allclose(jax.jit(jax.vmap(function))(*args), loop, rtol=1e-6)


def test_wrong_shapes_are_rejected():
    # Without the check (4, 1) and (4,) would broadcast to 16 terms.
    for function, shapes in [
        (margin_loss, [(4, 1), (4,)]),
        (margin_loss, [(2, 4), (2, 4)]),
        (margin_loss, [(4,), (3,)]),
        (spread_loss, [(4, 1), (4,), ()]),
        (spread_loss, [(2, 4), (2, 4), ()]),
        (spread_loss, [(4,), (3,), ()]),
        (spread_loss, [(4,), (4,), (4,)]),
        *(
            (loss, shapes)
            for loss in (cross_entropy_of_logits, cross_entropy_of_lengths)
            for shapes in ([(4, 1), (4,)], [(2, 4), (2, 4)], [(4,), (3,)])
        ),
        (spread_margin, [(2,)]),
        (reconstruction_loss, [(4, 4, 1), (4, 4)]),
        (argmax_mask, [(2, 4)]),
        (mask_capsules, [(3, 2), (3, 1)]),
    ]:
        with pytest.raises(AssertionError):
            function(*(np.zeros(shape, np.float32) for shape in shapes))
