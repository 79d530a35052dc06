"""Losses and masks: equation 4, the summed squared error, what the decoder may see."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from capsjax import (
    argmax_mask,
    label_mask,
    margin_loss,
    mask_capsules,
    reconstruction_loss,
)

CLASSES = [1, 2, 10]
TARGETS = {"one": [1, 0, 0, 0], "two": [1, 0, 1, 0], "none": [0, 0, 0, 0], "soft": [0.3, 0.7, 0, 1]}
LENGTHS = np.array([0.35, 0.62, 0.05, 0.97])


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


def test_label_mask():
    np.testing.assert_array_equal(label_mask(jnp.array(2), 4), [0, 0, 1, 0])
    np.testing.assert_array_equal(label_mask(jnp.array([1, 0]), 2), [[0, 1], [1, 0]])
    assert label_mask(jnp.array(0), 3).dtype == jnp.float32


def test_argmax_mask():
    np.testing.assert_array_equal(argmax_mask(jnp.array([0.1, 0.3, 0.9, 0.2])), [0, 0, 1, 0])
    np.testing.assert_array_equal(argmax_mask(jnp.zeros(3)), [1, 0, 0])
    np.testing.assert_array_equal(argmax_mask(jnp.ones(1)), [1])


def test_mask_capsules():
    pose = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    mask = np.array([0, 1, 0], np.float32)
    out, vjp = jax.vjp(mask_capsules, pose, mask)
    np.testing.assert_array_equal(out, [0 * pose[0], pose[1], 0 * pose[2]])
    dpose, dmask = vjp(jnp.ones((3, 4)))
    np.testing.assert_array_equal(dpose, np.outer(mask, np.ones(4)))
    np.testing.assert_allclose(dmask, pose.sum(axis=1), rtol=1e-5, atol=1e-6)


def test_jit_and_vmap_change_nothing():
    rng = np.random.default_rng(0)
    lengths = rng.uniform(size=(5, 4)).astype(np.float32)
    targets = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0]]
    pose, image = rng.normal(size=(2, 5, 4, 3)).astype(np.float32)
    for function, args in [
        (margin_loss, (lengths, targets)),
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
        (reconstruction_loss, [(4, 4, 1), (4, 4)]),
        (argmax_mask, [(2, 4)]),
        (mask_capsules, [(3, 2), (3, 1)]),
    ]:
        with pytest.raises(AssertionError):
            function(*(np.zeros(shape, np.float32) for shape in shapes))
