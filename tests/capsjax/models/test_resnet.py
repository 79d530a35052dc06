"""The residual network with which capsule networks are compared."""

import functools

import jax
import numpy as np
import pytest
import reference
from helpers import as_float64, filled
from small_networks import images

from capsjax import Variables, count_parameters, create_model, preset
from capsjax.models import ResNetConfig


@pytest.mark.parametrize("train", [False, True])
def test_resnet_equals_loops(train):
    """Statistics of the batch in training, otherwise running ones; a shortcut of each kind."""
    stages, epsilon = ((2, 2, 1), (4, 1, 2)), 0.01
    config = ResNetConfig((5, 7, 2), 3, conv_channels=2, stages=stages, norm_epsilon=epsilon)
    model = create_model(config)
    params, state = filled(model)
    x = images(3, config.image_shape)
    out = jax.jit(functools.partial(model.apply, train=train))(Variables(params, state), x)
    scores = (out[0] if train else out).scores
    p, stats = as_float64(params), as_float64(state)

    def layer(x, conv, p, stats, stride=1, norm=None):
        """Zeros around the image, convolution, normalization by channel."""
        kernel, size = p[conv]["kernel"], p[conv]["kernel"].shape[0]
        total = [(-(-n // stride) - 1) * stride + size - n for n in x.shape[1:3]]
        widths = [(max(n, 0) // 2, max(n, 0) - max(n, 0) // 2) for n in total]
        x = np.pad(x, ((0, 0), *widths, (0, 0)))
        y = np.stack([reference.convolution(image, kernel, stride) for image in x])
        learned, running = p[norm or f"{conv}_norm"], stats[norm or f"{conv}_norm"]
        mean, var = running["mean"], running["var"]
        if train:
            mean, var = y.mean((0, 1, 2)), y.var((0, 1, 2))
        return (y - mean) / np.sqrt(var + epsilon) * learned["scale"] + learned["bias"]

    y = reference.positive(layer(x.astype(np.float64), "conv", p, stats, norm="norm"))
    for n, stride in enumerate((1, 1, 2)):
        block = p["trunk"]["blocks"][str(n)], stats["trunk"]["blocks"][str(n)]
        around = layer(y, "around", *block, stride) if stride == 2 else y
        y = layer(reference.positive(layer(y, "first", *block, stride)), "second", *block)
        y = reference.positive(y + around)
    assert y.shape == (3, 3, 4, 4)
    exact = y.mean((1, 2)) @ p["dense"]["kernel"] + p["dense"]["bias"]
    np.testing.assert_allclose(scores, exact, rtol=1e-4, atol=1e-4)


def test_parameters():
    """He et al. (2016), counted by hand: convolutions without biases, scales and offsets."""

    def stages(*widths):
        first, total = 64, 0
        for n, w in enumerate(widths):
            convs = 9 * first * w + 3 * 9 * w * w + (first * w if n else 0)
            total, first = total + convs + 2 * w * (5 if n else 4), w
        return total

    def count(name):
        return count_parameters(jax.eval_shape(create_model(preset(name)).init, jax.random.key(0)))

    start = 9 * 3 * 64 + 2 * 64
    assert count("cnn_resnet") == start + stages(64, 128, 256, 512) + 512 * 10 + 10 == 11_173_962
    of_affnist = count("cnn_resnet_affnist")
    assert of_affnist == 9 * 64 + 2 * 64 + stages(64, 128, 256, 584) + 584 * 10 + 10
    assert of_affnist == pytest.approx(count("capsnet_affnist"), rel=0.002)


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="stages"):
        ResNetConfig(stages=())
    with pytest.raises(ValueError, match="stages"):
        ResNetConfig(stages=((4, 0, 1),))
