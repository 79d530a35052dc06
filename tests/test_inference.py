"""Classifying arrays: what the network says, whatever the batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capsjax import classify, create_model, preset

MODELS = {
    "capsnet": preset("capsnet_tiny", num_classes=4, routing="uniform"),
    "cnn": preset("cnn_tiny", num_classes=4),
}
IMAGES = np.random.default_rng(0).uniform(size=(7, 28, 28, 1)).astype(np.float32)


@pytest.mark.parametrize("name", MODELS)
def test_batches_of_any_size_say_what_the_network_says(name):
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


def test_it_can_be_compiled_itself():
    model = create_model(MODELS["cnn"])
    params = model.init(jax.random.key(0))
    inside = jax.jit(lambda p, x: classify(model, p, x, batch_size=3))(params, IMAGES)
    outside = classify(model, params, IMAGES, batch_size=3)
    np.testing.assert_allclose(inside.scores, outside.scores, rtol=1e-5, atol=1e-6)


def test_what_are_no_images_is_refused():
    model = create_model(MODELS["cnn"])
    params = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match="no images"):
        classify(model, params, IMAGES[:0])
    with pytest.raises(TypeError, match="uint8: divide by 255"):
        classify(model, params, np.uint8(255 * IMAGES))
