"""Steps from pixels to inputs: constant images, and their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capsjax import create_model, preset
from capsjax.preprocessing import centre_crop, standardize, standardize_channels

STANDARD = [standardize, standardize_channels]


@pytest.mark.parametrize("normalize", STANDARD)
@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3), (1, 1, 2)], ids=str)
def test_a_constant_image_becomes_zero(normalize, shape):
    for grey in range(0, 256, 5):
        found = normalize(jnp.full(shape, grey / 255, jnp.float32))
        np.testing.assert_array_equal(found, 0)


@pytest.mark.parametrize("normalize", STANDARD)
def test_an_image_of_one_different_pixel_has_deviation_one(normalize):
    image = np.full((28, 28, 1), 17, np.float64)
    image[3, 4] += 1
    unbiased = normalize is standardize_channels
    exact = (image - image.mean()) / image.std(ddof=int(unbiased))
    found = normalize(jnp.asarray(image / 255, jnp.float32))
    # TensorFlow's floor is the root of N / (N - 1) times this deviation.
    np.testing.assert_allclose(found, exact, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("normalize", STANDARD)
def test_short_floats_are_normalized_in_float32_and_whole_numbers_refused(normalize):
    image = np.random.default_rng(0).integers(0, 256, (28, 28, 1), np.uint8)
    for dtype in (jnp.float16, jnp.bfloat16):
        assert (normalize(jnp.full((28, 28, 1), 0.5, dtype)) == 0).all()
        found = normalize(jnp.asarray(image / 255, dtype))
        assert found.dtype == dtype
        np.testing.assert_allclose(found, normalize(jnp.float32(image / 255)), atol=0.02)
    with pytest.raises(TypeError, match="not uint8: divide by 255"):
        normalize(jnp.asarray(image))


@pytest.mark.parametrize("normalize", STANDARD)
def test_derivatives_are_finite_at_constant_images(normalize):
    derivative = jax.jacrev(normalize)(jnp.full((4, 3, 2), 0.3))
    assert np.isfinite(derivative).all() and np.abs(derivative).max() > 1


def test_the_gradient_of_a_network_is_finite_at_a_black_image():
    model = create_model(preset("capsnet_tiny", input_norm="image", num_classes=3, decoder=None))
    params = model.init(jax.random.key(0))
    score = jax.grad(lambda image: model.apply(params, image).scores.sum())
    assert np.isfinite(score(jnp.zeros((1, 28, 28, 1)))).all()


def test_a_crop_is_no_larger_than_its_image():
    assert centre_crop(jnp.ones((5, 6, 1)), (5, 2)).shape == (5, 2, 1)
    for size in ((6, 2), (5, 7)):
        with pytest.raises(ValueError, match="5x6 pixels are too few"):
            centre_crop(jnp.ones((5, 6, 1)), size)
