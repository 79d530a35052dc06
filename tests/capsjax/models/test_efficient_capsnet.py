"""Efficient-CapsNet against loops in NumPy."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import reference_routing as loops
from helpers import as_float64, compiled, filled
from small_networks import in_float64

from capsjax import PRESETS, CapsNetConfig, Variables, create_model, preset
from capsjax.functional import split

# Files with the trained weights of the authors for smallNORB (the names of their layers, with a
# point before kernel, bias, gamma, beta, W or b), and with images: test_images as the network
# takes them, [N, 48, 48, 2] float32.
WEIGHTS, IMAGES = "CAPSJAX_EFFICIENT_WEIGHTS", "CAPSJAX_EFFICIENT_IMAGES"

SMALL = CapsNetConfig(
    image_shape=(9, 10, 1),
    num_classes=3,
    conv_channels=3,
    conv_kernel=2,
    more_convs=((4, 3, 2),),
    conv_norm="batch",
    norm_place="after",
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
CASES = {
    "batch": {},
    "batch, trained": {},
    "instance": {"conv_norm": "instance", "conv_slope": 0.3, "norm_epsilon": 0.01},
    "layer": {"conv_norm": "layer", "norm_place": "before", "norm_epsilon": 1e-6},
}


def depthwise(x, kernel):
    """Returns the valid depthwise convolution of ``[H, W, C]`` with ``[k, k, 1, C]``."""
    (H, W, C), k = x.shape, kernel.shape[0]
    y = np.zeros((H - k + 1, W - k + 1, C), np.result_type(x, kernel))
    for row, column in np.ndindex(*y.shape[:2]):
        y[row, column] = np.sum(x[row : row + k, column : column + k] * kernel[:, :, 0], (0, 1))
    return y


def normalized(x, norm, axes, epsilon):
    """Returns images ``[B, H, W, C]`` normalized by their own mean and variance over axes."""
    mean = np.sum(x, axes, keepdims=True) / np.prod([x.shape[a] for a in axes])
    square = (x - mean) ** 2
    variance = np.sum(square, axes, keepdims=True) / np.prod([x.shape[a] for a in axes])
    return (x - mean) / np.sqrt(variance + epsilon) * norm["scale"] + norm["bias"]


def efficient_capsnet(params, stats, images, config, training=False):
    """Returns poses ``[B, J, D]``, layer by layer over the whole batch."""
    axes = {"batch": (0, 1, 2), "instance": (1, 2), "layer": (1, 2, 3)}[config.conv_norm]
    convs = [params["conv"], *params.get("more_convs", {}).values()]

    def activation(x):
        return x * np.where(np.real(x) > 0, 1, config.conv_slope)

    def norm(n, x):
        if config.conv_norm == "batch" and not training:
            s = stats["norms"][str(n)]
            x = (x - s["mean"]) / np.sqrt(s["var"] + config.norm_epsilon)
            return x * params["norms"][str(n)]["scale"] + params["norms"][str(n)]["bias"]
        return normalized(x, params["norms"][str(n)], axes, config.norm_epsilon)

    x = images
    for n, (layer, (_, _, stride)) in enumerate(zip(convs, config.convs, strict=True)):
        x = np.stack([reference.convolution(one, layer["kernel"], stride) for one in x])
        x = x + layer["bias"]
        x = activation(norm(n, x)) if config.norm_place == "before" else norm(n, activation(x))
    poses = []
    for one in x:
        y = depthwise(one, params["primary"]["conv"]["kernel"]) + params["primary"]["conv"]["bias"]
        u = np.array([loops.squash_exponential(u) for u in y.reshape(-1, config.primary_pose)])
        votes = reference.prediction_vectors(u, params["classes"]["kernel"])
        poses.append(loops.self_attention(votes, params["classes"]["beta"]))
    return poses


@pytest.mark.parametrize("case", CASES)
def test_efficient_capsnet_equals_reference(case, x64):
    config, training = dataclasses.replace(SMALL, **CASES[case]), case == "batch, trained"
    model, variables, x = in_float64(config)
    params, stats = split(variables)
    assert model.has_state == (config.conv_norm == "batch")
    for norm in params["norms"].values():
        norm["scale"] += 1  # or the ReLU lets nothing through
    direction, _ = split(as_float64(filled(model, 1)))
    a = np.random.default_rng(0).normal(size=3)

    def loss(params):
        variables = Variables(params, stats)
        out = model.apply(variables, x, train=training)
        out = out[0] if training else out
        return jnp.sum(a[None] * out.scores), out

    gradient, out = compiled(jax.grad(loss, has_aux=True), params)(params)
    assert abs(out.scores[0] - out.scores[1]).max() > 0.01
    for n, exact in enumerate(efficient_capsnet(params, stats, x, config, training)):
        np.testing.assert_allclose(out.scores[n], exact.activation, rtol=1e-9)
        np.testing.assert_allclose(out.pose[n], exact.pose, rtol=1e-9, atol=1e-12)

    def along(t):
        moved = jax.tree.map(lambda p, d: p + t * d, params, direction)
        found = efficient_capsnet(moved, stats, x, config, training)
        return sum(np.sum(a * one.activation) for one in found)

    got = sum(jax.tree.leaves(jax.tree.map(lambda g, d: np.sum(g * d), gradient, direction)))
    np.testing.assert_allclose(got, reference.derivative(along, 0.0, 1.0), rtol=1e-8)


@pytest.mark.parametrize("name", ["efficient", "efficient_multimnist", "efficient_smallnorb"])
def test_efficient_presets_have_the_tested_options(name):
    config = PRESETS[f"capsnet_{name}"]
    for field in ("norm_place", "primary_depthwise", "squash", "routing"):
        assert getattr(config, field) == getattr(SMALL, field)
    assert config.primary_grid == (1, 1) and not config.capsule_layers
    instance = name == "efficient_smallnorb"
    assert config.conv_norm == ("instance" if instance else "batch")
    assert config.conv_slope == (0.3 if instance else 0)
    assert (config.norm_epsilon, config.norm_momentum) == (1e-3, 0.99)


def test_initial_weights_are_those_of_the_authors_code():
    """Keras: he_normal sqrt(2 / fan-in), cut at two deviations; glorot_uniform and so on."""
    params, state = create_model(PRESETS["capsnet_efficient"]).init(jax.random.key(0))
    np.testing.assert_array_equal(state["norms"]["3"]["mean"], np.zeros(128))

    def check(kernel, deviation, largest):
        kernel = np.asarray(kernel)
        np.testing.assert_allclose(kernel.std(), deviation, rtol=0.05)
        assert 0.9 * largest < abs(kernel).max() <= largest * (1 + 1e-6)

    def check_he(kernel, fan_in):
        deviation = np.sqrt(2 / fan_in)
        check(kernel, deviation, 2 * deviation / 0.87962566103423978)

    check_he(params["conv"]["kernel"], 5 * 5)
    for n, channels in enumerate((32, 64, 64)):
        check_he(params["more_convs"][str(n)]["kernel"], 3 * 3 * channels)
    limit = np.sqrt(6 / (81 + 81 * 128))
    check(params["primary"]["conv"]["kernel"], limit / np.sqrt(3), limit)
    check_he(params["classes"]["kernel"], 16 * 10 * 8)
    check_he(params["decoder"]["layers"]["0"]["kernel"], 160)
    check_he(params["decoder"]["layers"]["1"]["kernel"], 512)
    last = np.sqrt(2 / (1024 + 784))
    check(params["decoder"]["layers"]["2"]["kernel"], last, 2 * last / 0.87962566103423978)
    params = create_model(PRESETS["capsnet_efficient_smallnorb"]).init(jax.random.key(0))
    together = np.concatenate([x for norm in params["norms"].values() for x in norm.values()])
    check(together, 0.1 / np.sqrt(12), 0.05)


def from_keras(weights):
    """Returns the parameters of the preset for smallNORB, of those of the authors' network."""
    convs = [
        {part: weights[f"conv2d_{n}.{part}"] for part in ("kernel", "bias")} for n in range(4, 9)
    ]
    names = ["instance_normalization", *(f"instance_normalization_{n}" for n in (1, 2, 3))]
    norms = [{"scale": weights[f"{n}.gamma"], "bias": weights[f"{n}.beta"]} for n in names]
    return {
        "conv": convs[0],
        "more_convs": {str(n): one for n, one in enumerate(convs[1:4])},
        "norms": {str(n): one for n, one in enumerate(norms)},
        "primary": {"conv": convs[4]},
        "classes": {
            "kernel": weights["digit_caps.W"].transpose(1, 0, 3, 2),  # [J, I, K, D] there
            "beta": weights["digit_caps.b"][:, :, 0].T,
        },
    }


def random_weights():
    """Returns weights of the shapes of the authors' file, of the size of trained ones."""
    rng = np.random.default_rng(0)
    channels, kernels = (2, 32, 64, 64, 1), (7, 3, 3, 3, 8)
    weights = {"digit_caps.W": rng.normal(size=(5, 16, 8, 16)) / 4}
    weights["digit_caps.b"] = rng.normal(size=(5, 16, 1)) / 4
    for n, (before, after, k) in enumerate(zip(channels, (32, 64, 64, 128, 128), kernels)):
        kernel = rng.normal(size=(k, k, before, after)) / np.sqrt(k * k * before)
        weights |= {
            f"conv2d_{4 + n}.kernel": kernel,
            f"conv2d_{4 + n}.bias": rng.normal(size=after),
        }
        if n < 4:
            name = f"instance_normalization_{n}" if n else "instance_normalization"
            weights |= {
                f"{name}.gamma": rng.normal(size=after),
                f"{name}.beta": rng.normal(size=after),
            }
    return {name: value.astype(np.float32) for name, value in weights.items()}


def keras_network(weights, x):
    """Returns class capsules ``[B, J, D]`` in float64, written after the authors' Keras code."""
    w = {name: np.float64(value) for name, value in weights.items()}

    def windows(x, k, stride):
        seen = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(1, 2))
        return seen[:, ::stride, ::stride]  # [B, H', W', C, k, k]

    def squash(s):
        n = np.linalg.norm(s, axis=-1, keepdims=True)
        return (1 - 1 / (np.exp(n) + 1e-20)) * (s / (n + 1e-20))

    for n, stride in enumerate((2, 1, 1, 2)):
        kernel = w[f"conv2d_{4 + n}.kernel"]
        seen = windows(x, kernel.shape[0], stride)
        x = np.einsum("bhwcij,ijco->bhwo", seen, kernel, optimize=True) + w[f"conv2d_{4 + n}.bias"]
        x = np.where(x > 0, x, 0.3 * x)
        mean, var = x.mean((1, 2), keepdims=True), x.var((1, 2), keepdims=True)
        name = f"instance_normalization_{n}" if n else "instance_normalization"
        x = (x - mean) / np.sqrt(var + 1e-3) * w[f"{name}.gamma"] + w[f"{name}.beta"]
    x = np.einsum("bhwcij,ijc->bhwc", windows(x, 8, 1), w["conv2d_8.kernel"][:, :, 0])
    u = squash((x + w["conv2d_8.bias"]).reshape(-1, 16, 8))
    votes = np.einsum("bik,jikd->bjid", u, w["digit_caps.W"])
    c = np.einsum("bjid,bjld->bji", votes, votes)[..., None] / 4
    c = np.exp(c - c.max(1, keepdims=True))
    c = c / c.sum(1, keepdims=True) + w["digit_caps.b"]
    return squash((votes * c).sum(2))


def test_weights_of_the_authors_network_give_its_decisions():
    """With their trained weights and with real images if the environment names the files."""
    given = os.environ.get(WEIGHTS)
    weights = dict(np.load(given)) if given else random_weights()
    if path := os.environ.get(IMAGES):
        images = np.load(path)["test_images"]
    else:
        images = np.random.default_rng(1).normal(size=(6, 48, 48, 2)).astype(np.float32)
    model = create_model(preset("capsnet_efficient_smallnorb"))
    params = from_keras(weights)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, shapes)
    out = jax.jit(model.apply)(params, images)
    exact = keras_network(weights, np.float64(images))
    lengths = np.linalg.norm(exact, axis=2)
    np.testing.assert_allclose(out.pose, exact, atol=1e-4)
    np.testing.assert_allclose(out.scores, lengths, atol=1e-4)
    np.testing.assert_array_equal(np.argmax(out.scores, 1), lengths.argmax(1))
    assert len(set(lengths.argmax(1))) > 1 and np.diff(np.sort(lengths)[:, -2:]).min() > 1e-4
