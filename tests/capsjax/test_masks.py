"""Masks: what the decoder may see."""

import jax
import jax.numpy as jnp
import numpy as np

from capsjax.masks import argmax_mask, label_mask, mask_capsules


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
