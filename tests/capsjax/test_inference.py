"""Computation in batches, and classification: results do not depend on the batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capsjax import classify, create_model, preset
from capsjax.batches import map_batches

MODELS = {
    "capsnet": preset("capsnet_tiny", num_classes=4, routing="uniform"),
    "cnn": preset("cnn_tiny", num_classes=4),
}
IMAGES = np.random.default_rng(0).uniform(size=(7, 28, 28, 1)).astype(np.float32)


@pytest.mark.parametrize("name", MODELS)
def test_classify_equals_the_network_for_any_batch_size(name):
    model = create_model(MODELS[name])
    params = model.init(jax.random.key(0))
    whole = jax.jit(model.apply)(params, IMAGES)
    scores = np.asarray(whole.scores)
    order = np.argsort(-scores, axis=1)
    ranked = np.take_along_axis(scores, order, axis=1)
    for batch_size in (3, 100):
        found = classify(model, params, IMAGES, batch_size=batch_size)
        np.testing.assert_allclose(found.scores, scores, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found.classes, order[:, 0])
        np.testing.assert_array_equal(found.runner_up, order[:, 1])
        np.testing.assert_allclose(found.lengths, ranked[:, 0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.runner_up_lengths, ranked[:, 1], rtol=1e-5, atol=1e-6)
        if name == "capsnet":  # drawn from the capsule of the first choice
            drawn = jax.jit(model.apply)(params, IMAGES, order[:, 0]).reconstruction
            np.testing.assert_allclose(found.reconstruction, drawn, rtol=1e-5, atol=1e-6)
        else:
            assert found.reconstruction is None


def test_one_compilation_serves_all_batches_and_calls():
    inner = create_model(MODELS["cnn"])
    traced = []

    def apply(*args, **kwargs):
        traced.append(args[1].shape)
        return inner.apply(*args, **kwargs)

    model = inner._replace(apply=apply)
    params = model.init(jax.random.key(0))
    classify(model, params, IMAGES, batch_size=3)
    classify(model, params, IMAGES[:5], batch_size=3)
    classify(model, params, jnp.asarray(IMAGES[:3]), batch_size=3)
    assert traced == [(3, 28, 28, 1)]


def test_classify_can_be_jitted():
    model = create_model(MODELS["cnn"])
    params = model.init(jax.random.key(0))
    inside = jax.jit(lambda p, x: classify(model, p, x, batch_size=3))(params, IMAGES)
    outside = classify(model, params, IMAGES, batch_size=3)
    np.testing.assert_allclose(inside.scores, outside.scores, rtol=1e-5, atol=1e-6)


def test_invalid_images_are_refused():
    model = create_model(MODELS["cnn"])
    params = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match="no images"):
        classify(model, params, IMAGES[:0])
    with pytest.raises(TypeError, match="uint8: divide by 255"):
        classify(model, params, np.uint8(255 * IMAGES))
    with pytest.raises(AssertionError):
        classify(model, params, IMAGES[0])


def test_a_network_of_one_class_is_refused():
    model = create_model(preset("cnn_tiny", num_classes=1))
    with pytest.raises(ValueError, match="single class"):
        classify(model, model.init(jax.random.key(0)), IMAGES)


BATCHED = {"x": np.arange(14.0).reshape(7, 2), "y": np.arange(7)}


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10, 20])
def test_batches_have_one_size_and_are_filled_from_the_start(batch_size):
    seen = []

    def function(batch, count):
        seen.append((batch["y"].tolist(), count))
        return {"sum": batch["x"].sum(axis=1), "row": (batch["y"], batch["y"][:, None] * [1, 2])}

    out = map_batches(function, BATCHED, batch_size)
    np.testing.assert_array_equal(out["sum"], BATCHED["x"].sum(axis=1))
    np.testing.assert_array_equal(out["row"][0], np.arange(7))
    np.testing.assert_array_equal(out["row"][1], np.arange(7)[:, None] * [1, 2])
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(out))
    starts = range(0, 7, batch_size)
    rows = [[n % 7 for n in range(start, start + batch_size)] for start in starts]
    assert seen == list(zip(rows, [min(batch_size, 7 - start) for start in starts]))


def test_batches_of_traced_arrays():
    def doubled(x):
        return map_batches(lambda batch, count: 2 * batch, x, 3)

    x = BATCHED["x"].astype(np.float32)
    for out in (jax.jit(doubled)(x), doubled(jnp.asarray(x))):
        assert isinstance(out, jax.Array)
        np.testing.assert_array_equal(out, 2 * x)


def test_arrays_that_do_not_form_batches_are_refused():
    def same(batch, count):
        return batch

    for empty in ({}, np.zeros((0, 2))):
        with pytest.raises(ValueError, match="no rows"):
            map_batches(same, empty, 3)
    with pytest.raises(ValueError, match="batch_size must be 1 or more, not 0"):
        map_batches(same, BATCHED, 0)
    with pytest.raises(AssertionError):
        map_batches(same, BATCHED | {"y": np.arange(6)}, 3)
