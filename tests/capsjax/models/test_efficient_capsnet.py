"""Efficient-CapsNet against loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import reference
import reference_routing as loops
from helpers import as_float64, compiled, filled
from small_networks import in_float64, promoting

from capsjax import (
    PRESETS,
    CapsNetConfig,
)

EFFICIENT = CapsNetConfig(
    image_shape=(9, 10, 1),
    num_classes=3,
    conv_channels=3,
    conv_kernel=2,
    more_convs=((4, 3, 2),),
    conv_norm=True,
    primary_types=2,
    primary_pose=2,
    primary_kernel=2,
    primary_stride=1,
    primary_depthwise=True,
    class_pose=3,
    squash="exponential",
    routing="self_attention",
    decoder=None,
)


def efficient_capsnet(params, x):
    """Mazzia et al. (2021), with layer normalisation over all numbers of an example."""
    convs = [params["conv"], params["more_convs"][0]]
    for n, (layer, stride) in enumerate(zip(convs, [1, 2])):
        y = reference.convolution(x, layer["kernel"], stride) + layer["bias"]
        mean = np.sum(y) / y.size
        variance = np.sum((y - mean) ** 2) / y.size
        y = (y - mean) / np.sqrt(variance + 1e-6)
        x = reference.positive(y * params["norms"][n]["scale"] + params["norms"][n]["bias"])
    w = params["primary"]["conv"]["kernel"]
    (H, W, C), k = x.shape, w.shape[0]
    y = np.zeros((H - k + 1, W - k + 1, C), np.result_type(x, w))
    for row, column, c in np.ndindex(*y.shape):
        y[row, column, c] = np.sum(x[row : row + k, column : column + k, c] * w[:, :, 0, c])
    y = y + params["primary"]["conv"]["bias"]
    u = np.array([loops.squash_exponential(u) for u in y.reshape(-1, 2)])
    votes = reference.prediction_vectors(u, params["classes"]["kernel"])
    return loops.self_attention(votes, params["classes"]["beta"])


def test_efficient_capsnet_equals_reference(x64):
    model, params, x = in_float64(EFFICIENT)
    for norm in params["norms"].values():
        norm["scale"] += 1  # or the ReLU lets nothing through
    direction = as_float64(filled(model, 1))
    a = np.random.default_rng(0).normal(size=3)

    def loss(params):
        out = model.apply(params, x)
        return jnp.sum(a[None] * out.scores), out

    with promoting(EFFICIENT):
        gradient, out = compiled(jax.grad(loss, has_aux=True), params)(params)
    assert abs(out.scores[0] - out.scores[1]).max() > 0.01
    for n in range(2):
        exact = efficient_capsnet(params, x[n])
        np.testing.assert_allclose(out.scores[n], exact.activation, rtol=1e-9)
        np.testing.assert_allclose(out.pose[n], exact.pose, rtol=1e-9, atol=1e-12)

    def along(t):
        moved = jax.tree.map(lambda p, d: p + t * d, params, direction)
        return sum(np.sum(a * efficient_capsnet(moved, image).activation) for image in x)

    got = sum(jax.tree.leaves(jax.tree.map(lambda g, d: np.sum(g * d), gradient, direction)))
    np.testing.assert_allclose(got, reference.derivative(along, 0.0, 1.0), rtol=1e-8)


def test_efficient_preset_has_the_tested_options():
    config = PRESETS["capsnet_efficient"]
    for name in ("conv_norm", "primary_depthwise", "primary_stride", "squash", "routing"):
        assert getattr(config, name) == getattr(EFFICIENT, name)
    assert config.primary_grid == (1, 1) and not config.capsule_layers
