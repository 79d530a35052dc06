"""The convolutional baseline."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest
import reference
from helpers import as_float64, filled
from small_networks import images

from capsjax import (
    CNNConfig,
    Variables,
    count_parameters,
    create_model,
    preset,
)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("pool", [False, True])
def test_cnn_equals_reference(pool, padding):
    sizes = {"channels": (3, 4), "kernels": (3, 2), "dense": (6, 5)}
    config = CNNConfig((9, 10, 2), 3, padding=padding, pool=pool, **sizes)
    model = create_model(config)
    params = filled(model)
    x = images(2, config.image_shape)
    out = jax.jit(model.apply)(params, x)
    for n in range(2):
        exact = reference.cnn(as_float64(params), x[n].astype(np.float64), pool, padding)
        np.testing.assert_allclose(out.scores[n], exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("dense", [(), (5,)])
def test_normalized_cnn_equals_reference(train, dense):
    """Statistics of the batch in training, otherwise running ones, of convolutions and logits."""
    sizes = {"channels": (3, 4), "kernels": (3, 2), "padding": "VALID", "dense": dense}
    config = CNNConfig((7, 6, 2), 3, conv_norm="batch", norm_epsilon=0.01, dropout=0.0, **sizes)
    model = create_model(config)
    params, state = filled(model)
    x = images(4, config.image_shape)
    out = jax.jit(functools.partial(model.apply, train=train))(Variables(params, state), x)
    scores, *_ = out if train else (out,)
    p, stats = as_float64(params), as_float64(state)

    def normalize(x, layer):
        norm, running = p["norms"][layer], stats["norms"][layer]
        axes = tuple(range(x.ndim - 1))
        mean, var = (x.mean(axes), x.var(axes)) if train else (running["mean"], running["var"])
        return (x - mean) / np.sqrt(var + 0.01) * norm["scale"] + norm["bias"]

    y = x.astype(np.float64)
    for n in range(2):
        kernel = p["convs"][str(n)]["kernel"]
        y = np.stack([reference.convolution(image, kernel) for image in y])
        y = reference.positive(normalize(y, str(n)))
    y = y.reshape(4, -1)
    if dense:
        y = reference.positive(y @ p["dense"]["0"]["kernel"] + p["dense"]["0"]["bias"])
    last = p["dense"][str(len(dense))]
    assert set(last) == {"kernel"}
    exact = normalize(y @ last["kernel"], "2")
    np.testing.assert_allclose(scores.scores if train else out.scores, exact, rtol=1e-4, atol=1e-4)


def test_m5_has_its_published_size():
    """An et al. (2020), counted from the shapes in their code."""
    widths = (1, 32, 64, 96, 128, 160)
    convs = sum(25 * m * n for m, n in itertools.pairwise(widths))
    norms = 2 * (32 + 64 + 96 + 128 + 160 + 10)
    shapes = jax.eval_shape(create_model(preset("cnn_m5")).init, jax.random.key(0))
    assert count_parameters(shapes) == convs + norms + 10_240 * 10 == 1_128_180


def test_convolutions_need_pixels():
    m5 = preset("cnn_m5")
    assert dataclasses.replace(m5, image_shape=(21, 30, 3)).num_classes == 10
    with pytest.raises(ValueError, match="20x30 pixels are too few .* 21x21"):
        dataclasses.replace(m5, image_shape=(20, 30, 3))
    with pytest.raises(ValueError, match="conv_norm"):
        CNNConfig(conv_norm="group")
    with pytest.raises(ValueError, match="padding"):
        CNNConfig(padding="FULL")


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_the_rate_of_dropout_is_a_share(rate):
    with pytest.raises(ValueError, match="dropout must be at least 0 and less than 1"):
        CNNConfig(dropout=rate)


def test_pooling_needs_pixels():
    CNNConfig((4, 5, 1), channels=(2, 2), kernels=(3, 3), pool=True)
    CNNConfig((1, 1, 1), channels=(2, 2), kernels=(3, 3))
    with pytest.raises(ValueError, match="3x9 pixels are too few .* pooling; .* 4x4"):
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
