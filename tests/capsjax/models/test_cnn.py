"""The convolutional baseline."""

import jax
import numpy as np
import pytest
import reference
from helpers import as_float64, filled
from small_networks import images

from capsjax import (
    CNNConfig,
    create_model,
)


@pytest.mark.parametrize("pool", [False, True])
def test_cnn_equals_reference(pool):
    config = CNNConfig((7, 6, 2), 3, channels=(3, 4), kernels=(3, 2), pool=pool, dense=(6, 5))
    model = create_model(config)
    params = filled(model)
    x = images(2, config.image_shape)
    out = jax.jit(model.apply)(params, x)
    for n in range(2):
        exact = reference.cnn(as_float64(params), x[n].astype(np.float64), pool)
        np.testing.assert_allclose(out.scores[n], exact, rtol=1e-4, atol=1e-5)


def test_pooling_needs_pixels():
    CNNConfig((4, 5, 1), channels=(2, 2), kernels=(3, 3), pool=True)
    CNNConfig((1, 1, 1), channels=(2, 2), kernels=(3, 3))
    with pytest.raises(ValueError, match="needs 4 pixels .* images have 3x9"):
        CNNConfig((3, 9, 1), channels=(2, 2), kernels=(3, 3), pool=True)


def test_dropout_is_applied_only_with_a_key():
    config = CNNConfig((4, 4, 1), 3, channels=(2,), kernels=(1,), dense=(8,), dropout=0.25)
    model = create_model(config)
    params = filled(model)
    apply = jax.jit(model.apply)
    x = images(4000, config.image_shape)
    x[:] = x[0]
    plain = np.asarray(apply(params, x).scores)
    assert (plain == plain[0]).all()
    one, same, two = (
        np.asarray(apply(params, x, None, jax.random.key(seed)).scores) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert abs(one - two).max() > 0.1
    # A unit is kept with probability 3/4 and then divided by it: the mean does not move.
    error = np.std(one, axis=0) / np.sqrt(len(one))
    assert (error > 0).all() and (abs(np.mean(one, axis=0) - plain[0]) < 4 * error).all()
