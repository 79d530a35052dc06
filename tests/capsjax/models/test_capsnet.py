"""Networks: sizes that pin the paper's architectures, forward passes, pure functions."""

import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import reference_routing as loops
from flax import nnx
from helpers import as_float64, compiled, filled

from capsjax import (
    CNN,
    PRESETS,
    CapsNet,
    CapsNetConfig,
    Capsules,
    CNNConfig,
    Conv,
    ConvCapsules,
    Decoder,
    Model,
    PrimaryCapsules,
    RoutedCapsules,
    count_parameters,
    create_model,
    from_module,
    make_routing,
    margin_loss,
    preset,
)

TINY = CapsNetConfig(
    image_shape=(8, 9, 2),
    num_classes=3,
    conv_channels=4,
    conv_kernel=3,
    primary_types=2,
    primary_pose=3,
    primary_kernel=3,
    primary_stride=2,
    class_pose=4,
    decoder=(5, 6),
)
OFFICIAL = {"init": "official", "routing_bias": True, "primary_scale": 1 / 32}
# Primary capsules at 4x3 positions, 3x2 above them, 2x1 above those.
DEEP = CapsNetConfig(
    image_shape=(10, 8, 1),
    num_classes=3,
    conv_channels=3,
    conv_kernel=2,
    primary_types=2,
    primary_pose=3,
    primary_kernel=3,
    primary_stride=2,
    capsule_layers=((3, 2, 1), (2, 2, 1)),
    class_pose=4,
    squash="exponential",
    decoder=None,
    dtype="float64",
)
KEY = jax.random.key(0)


@functools.cache
def built(**changes):
    """A tiny network: configuration, parameters without zeros, compiled apply."""
    config = dataclasses.replace(TINY, **changes)
    model = create_model(config)
    return config, filled(model), jax.jit(model.apply)


@functools.cache
def initial(**changes):
    """Initial parameters of the tiny preset by name, and their number."""
    key = jax.random.key(0, impl="rbg")  # compiles in a tenth of the time of threefry
    params = jax.jit(create_model(preset("capsnet_tiny", **changes)).init)(key)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(x) for p, x in leaves}


def images(n=3, shape=TINY.image_shape, seed=0):
    return np.random.default_rng(seed).uniform(size=(n, *shape)).astype(np.float32)


def in_float64(config, batch=2):
    """Network, parameters and images in float64."""
    model = create_model(dataclasses.replace(config, dtype="float64"))
    return model, as_float64(filled(model)), as_float64(images(batch, config.image_shape))


def promoting(config):
    """Flax's LayerNorm promotes types, which tests otherwise forbid."""
    normalized = isinstance(config, CapsNetConfig) and config.conv_norm
    return jax.numpy_dtype_promotion("standard" if normalized else "strict")


def expected(config, params, image, label=None):
    return reference.capsnet(
        as_float64(params),
        np.asarray(image, np.float64),
        pose=config.primary_pose,
        stride=config.primary_stride,
        iterations=config.routing_iterations,
        scale=config.primary_scale,
        label=label,
    )


# Sizes


@pytest.mark.parametrize(
    "config, parameters",
    [
        (preset("capsnet_mnist", routing_bias=True), 8_215_728),
        (preset("capsnet_mnist"), 8_215_568),
        (preset("capsnet_mnist", routing_bias=True, decoder=None), 6_804_384),
        (preset("capsnet_mnist", decoder=None), 6_804_224),
        (preset("capsnet_multimnist", routing_bias=True), 11_361_968),
        (preset("cnn_mnist"), 35_445_522),
        (preset("cnn_multimnist"), 24_563_978),
        (preset("capsnet_affnist", routing_bias=True), 13_475_808),
        (preset("cnn_affnist"), 13_486_617),
        (preset("capsnet_efficient", decoder=None), 161_824),
        (preset("capsnet_matrix"), 68_572),
    ],
    ids=str,
)
def test_parameters_of_the_papers_networks(config, parameters):
    shapes = jax.eval_shape(create_model(config).init, KEY)  # allocates nothing
    assert count_parameters(shapes) == parameters
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))


DECODER = (160 * 128 + 128) + (128 * 256 + 256) + (256 * 784 + 784)


@pytest.mark.parametrize(
    "name, parameters",
    [
        (
            "capsnet_small",
            (9 * 9 * 64 + 64)
            + (9 * 9 * 64 * 64 + 64)
            + (6 * 6 * 8) * 10 * 16 * 8  # W
            + DECODER,
        ),
        (
            "capsnet_deep",
            (9 * 9 * 64 + 64)
            + (9 * 9 * 64 * 64 + 64)
            + (3 * 3 * 8) * 8 * 16 * 8
            + (3 * 3 * 8) * 8 * 16 * 16
            + (2 * 2 * 8) * 8 * 16 * 16
            + 8 * 10 * 16 * 16  # one position is left
            + DECODER,
        ),
        (
            "capsnet_efficient",
            (5 * 5 * 32 + 32)
            + (3 * 3 * 32 * 64 + 64)
            + (3 * 3 * 64 * 64 + 64)
            + (3 * 3 * 64 * 128 + 128)
            + 2 * (32 + 64 + 64 + 128)  # scales and offsets of the normalisations
            + (9 * 9 * 128 + 128)  # depthwise
            + 16 * 10 * 16 * 8
            + 16 * 10  # beta
            + (160 * 512 + 512)
            + (512 * 1024 + 1024)
            + (1024 * 784 + 784),
        ),
        (
            "capsnet_matrix",
            (5 * 5 * 64 + 64)
            + 2 * 64  # scale and offset of the normalisation
            + (64 * 8 * 16 + 8 * 16)  # poses
            + (64 * 8 + 8)  # activations
            + (3 * 3 * 8) * 16 * 4 * 4
            + (3 * 3 * 16) * 16 * 4 * 4
            + 16 * 10 * 4 * 4  # positions share them
            + 2 * (16 + 16 + 10),  # beta_u and beta_a
        ),
        (
            "cnn_small",
            (9 * 9 * 128 + 128)
            + (5 * 5 * 128 * 64 + 64)
            + (7 * 7 * 64 * 256 + 256)
            + (256 * 10 + 10),
        ),
        (
            "cnn_mnist_small",
            (5 * 5 * 32 + 32)
            + (5 * 5 * 32 * 32 + 32)
            + (5 * 5 * 32 * 16 + 16)
            + (28 * 28 * 16 * 41 + 41)
            + (41 * 24 + 24)
            + (24 * 10 + 10),
        ),
    ],
)
def test_parameters_by_hand(name, parameters):
    assert count_parameters(jax.eval_shape(create_model(preset(name)).init, KEY)) == parameters


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_network(name):
    for dtype in ("float32", "bfloat16"):
        config = preset(name, dtype=dtype)
        model = create_model(config)
        params = jax.eval_shape(model.init, KEY)
        assert {p.dtype for p in jax.tree.leaves(params)} == {np.dtype("float32")}
        x = jax.ShapeDtypeStruct((3, *config.image_shape), jnp.float32)
        with promoting(config):
            out = jax.eval_shape(model.apply, params, x)
        assert out.scores.shape == (3, config.num_classes) and out.scores.dtype == jnp.float32
        if isinstance(config, CapsNetConfig):
            assert out.pose.shape == (3, config.num_classes, config.class_pose)
            drawn = x.shape if config.decoder is not None else None
            assert getattr(out.reconstruction, "shape", None) == drawn
            assert (drawn is None) == (name == "capsnet_matrix")
        else:
            assert out.pose is None and out.reconstruction is None


def test_primary_capsules_of_mnist():
    assert PRESETS["capsnet_mnist"].input_capsules == 1152  # 6 x 6 x 32
    assert PRESETS["capsnet_multimnist"].input_capsules == 3200  # 10 x 10 x 32
    assert preset("capsnet_mnist", image_shape=(40, 28, 1)).input_capsules == 12 * 6 * 32
    assert PRESETS["capsnet_efficient"].input_capsules == 16  # 1 x 1
    assert PRESETS["capsnet_matrix"].primary_grid == (12, 12)
    assert preset("capsnet_deep", image_shape=(30, 28, 1)).primary_grid == (7, 6)


# Bug: a negative dimension, or a crash deep inside the framework.
def test_smallest_image():
    for shape in [(16, 28, 1), (28, 16, 1), (16, 16, 3)]:
        with pytest.raises(ValueError, match=f"{shape[0]}x{shape[1]}.*smallest image is 17x17"):
            preset("capsnet_mnist", image_shape=shape)
    with pytest.raises(ValueError, match="smallest image is 7x7"):
        dataclasses.replace(TINY, conv_kernel=5, image_shape=(6, 9, 2))
    # 1, 2, 4, 6 positions, then 9 + 2 * 5 = 19 pixels of the map, 27 of the image.
    with pytest.raises(ValueError, match="26x28 .*9x9, 9x9, 3x3, 3x3, 2x2;.* image is 27x27"):
        preset("capsnet_deep", image_shape=(26, 28, 1))
    assert create_model(preset("capsnet_deep", image_shape=(27, 27, 1)))
    # 9 positions, 11 pixels, 13, 15, and 19.
    with pytest.raises(ValueError, match="smallest image is 27x27"):
        preset("capsnet_efficient", image_shape=(28, 26, 1))


@pytest.mark.parametrize("shape", [(17, 17, 3), (21, 30, 1), (18, 17, 2)])
def test_other_images(shape):
    config = preset("capsnet_tiny", image_shape=shape, num_classes=2)
    model = create_model(config)
    params = jax.eval_shape(model.init, KEY)
    out = jax.eval_shape(model.apply, params, images(4, shape), np.zeros(4, int))
    assert params["classes"]["kernel"].shape[0] == config.input_capsules
    assert out.scores.shape == (4, 2) and out.reconstruction.shape == (4, *shape)


def test_images_of_another_shape_are_rejected():
    for config in (TINY, CNNConfig(image_shape=TINY.image_shape)):
        model = create_model(config)
        params = jax.eval_shape(model.init, KEY)
        for shape in [(2, 9, 8, 2), (2, 8, 9, 1), (8, 9, 2)]:
            with pytest.raises(AssertionError):
                jax.eval_shape(model.apply, params, np.zeros(shape, np.float32))


# Configurations


def test_configurations_are_frozen_and_hashable():
    for config in (CapsNetConfig(), CNNConfig()):
        with pytest.raises(dataclasses.FrozenInstanceError):
            config.num_classes = 3
        assert hash(config) == hash(dataclasses.replace(config))


def test_preset_errors():
    with pytest.raises(ValueError, match="capsnet_mnist, .*cnn_tiny, not 'resnet'"):
        preset("resnet")
    with pytest.raises(TypeError, match="depth"):
        preset("capsnet_mnist", depth=3)
    with pytest.raises(ValueError, match="lecun, official, not 'zeros'"):
        preset("capsnet_mnist", init="zeros")
    with pytest.raises(ValueError):
        create_model(CNNConfig(channels=(4, 4), kernels=(5,)))
    assert preset("capsnet_mnist", num_classes=7).num_classes == 7
    assert PRESETS["capsnet_mnist"].num_classes == 10


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"votes": "matrix"}, "votes 'matrix' keep the pose size: 3 can't become 4"),
        ({"votes": "elementwise"}, "votes 'elementwise' keep the pose size: 3 can't become 4"),
        ({"votes": "conv_matrix", "class_pose": 3}, "square number of components, not 3"),
        (
            {"layer_votes": "matrix", "capsule_layers": ((2, 2, 1),), "primary_types": 3},
            "votes 'matrix' keep the pose size: 3 can't become 4",
        ),
        ({"votes": "ful"}, "votes must be one of full, .*elementwise, not 'ful'"),
        ({"layer_votes": "ful"}, "layer_votes must be one of full, .*, not 'ful'"),
        ({"squash": "cube"}, "squash must be one of auto, paper, .*, not 'cube'"),
        ({"routing": "dynamc"}, "routing must be one of dynamic, .*, not 'dynamc'.*'dynamic'"),
        ({"routing": "self-attention"}, r"not 'self-attention' \(did you mean 'self_attention'"),
        ({"routing_schedule": "random"}, "sequential, concurrent, not 'random'"),
        ({"pose_norm": "batch"}, "auto, none, not 'batch'"),
        ({"routing_iterations": 0}, "iterations must be 1 or more, not 0"),
        ({"primary_activation": "relu"}, "length, sigmoid, not 'relu'"),
        ({"primary_depthwise": True}, r"depthwise .* 4 channels, not 2 \* 3"),
        (
            {"routing": "em", "routing_schedule": "concurrent", "capsule_layers": ((2, 2, 1),)},
            "routing 'em' has no concurrent schedule",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_configurations_that_make_no_network(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        create_model(dataclasses.replace(TINY, **changes))
    assert "\n" not in str(error.value)


def test_em_with_one_layer_may_be_concurrent():
    assert create_model(dataclasses.replace(TINY, routing="em", routing_schedule="concurrent"))


# The whole forward pass


@pytest.mark.parametrize(
    "changes, labels",
    [
        ({}, [0, 2, 1]),
        ({}, None),
        ({"routing_iterations": 1, "decoder": ()}, [1, 1, 0]),
        (OFFICIAL | {"routing_iterations": 4}, [2, 0, 1]),
    ],
    ids=["label", "argmax", "one", "official"],
)
def test_capsnet_is_the_papers(changes, labels):
    config, params, apply = built(**changes)
    if config.primary_scale != 1:  # undone, or the primary capsules would be all bias
        params = copy.deepcopy(params)
        params["primary"]["conv"]["kernel"] /= config.primary_scale
    x = images()
    out = apply(params, x, labels if labels is None else np.array(labels))
    for n in range(3):
        exact = expected(config, params, x[n], labels and labels[n])
        np.testing.assert_allclose(out.scores[n], exact.lengths, rtol=1e-4)
        np.testing.assert_allclose(out.pose[n], exact.v, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(out.reconstruction[n], exact.reconstruction, rtol=1e-4)


def test_capsnet_in_float64(x64):
    """Scores, and the derivative of the margin loss along a random direction."""
    config = dataclasses.replace(TINY, dtype="float64", decoder=None, routing_bias=True)
    model = create_model(config)
    params, direction = as_float64(filled(model)), as_float64(filled(model, seed=1))
    image, targets = images()[0].astype(np.float64), np.array([0.0, 1.0, 0.0])

    @jax.jit
    def value_and_derivative(params):
        def loss(params):
            scores = model.apply(params, image[None]).scores[0]
            return margin_loss(scores, targets), scores

        gradient, scores = jax.grad(loss, has_aux=True)(params)
        return scores, gradient

    scores, gradient = value_and_derivative(params)
    leaves, tree = jax.tree.flatten(params)
    steps = jax.tree.leaves(direction)

    def along(t):
        moved = jax.tree.unflatten(tree, [p + t * d for p, d in zip(leaves, steps)])
        lengths = reference.capsnet(moved, image, pose=3, stride=2, iterations=3).lengths
        return reference.margin_loss(lengths, targets)

    exact = reference.capsnet(params, image, pose=3, stride=2, iterations=3)
    np.testing.assert_allclose(scores, exact.lengths, rtol=1e-10)
    got = sum(np.sum(np.asarray(g) * d) for g, d in zip(jax.tree.leaves(gradient), steps))
    np.testing.assert_allclose(got, reference.derivative(along, 0.0, 1.0), rtol=1e-9)


def primary_capsules(params, x, pose):
    """Poses ``[I, K]`` of the network DEEP."""
    y = reference.convolution(x, params["conv"]["kernel"]) + params["conv"]["bias"]
    y = reference.convolution(reference.positive(y), params["primary"]["conv"]["kernel"], 2)
    y = (y + params["primary"]["conv"]["bias"]).reshape(-1, pose)
    return np.array([loops.squash_exponential(u) for u in y])


def seen(u, grid, kernel):
    """Children of every position, with stride 1."""
    return loops.patches(u.reshape(*grid, -1, u.shape[1]), kernel, 1)[0]


LAYERS = [(0, (4, 3), 2), (1, (3, 2), 2)]  # of DEEP: number, grid below, kernel


def test_depth(x64):
    """A network of layers is layer after layer."""
    config = dataclasses.replace(DEEP, routing_bias=True)
    model, params, x = in_float64(config)
    encode = functools.partial(model.apply, method="encode")
    out = compiled(encode, params, x)(params, x)
    assert abs(out.activation[0] - out.activation[1]).max() > 0.01
    for_classes = functools.partial(model.apply, method="votes")
    votes_of_classes = compiled(for_classes, params, x)(params, x)
    for n in range(2):
        u = primary_capsules(params, x[n], 3)
        for layer, grid, kernel in LAYERS:
            p = params["layers"][layer]
            votes = [reference.prediction_vectors(s, p["kernel"]) for s in seen(u, grid, kernel)]
            routed = [loops.dynamic(v, 3, bias=p["bias"], squash="exponential") for v in votes]
            u = np.concatenate([one.pose for one in routed])
        votes = reference.prediction_vectors(u, params["classes"]["kernel"])
        np.testing.assert_allclose(votes_of_classes[n], votes, rtol=1e-10)
        bias = params["classes"]["bias"]
        exact = loops.dynamic(votes, 3, bias=bias, squash="exponential")
        np.testing.assert_allclose(out.pose[n], exact.pose, rtol=1e-10)
        np.testing.assert_allclose(out.activation[n], exact.activation, rtol=1e-10)
        np.testing.assert_allclose(out.coupling[n], exact.coupling, rtol=1e-10)


@pytest.mark.parametrize("pose_norm", ["auto", "none"])
def test_poses_that_are_means_are_normalised_between_layers(x64, pose_norm):
    config = dataclasses.replace(DEEP, routing="kde", pose_norm=pose_norm)
    model, params, x = in_float64(config)
    encode = functools.partial(model.apply, method="encode")
    out = compiled(encode, params, x)(params, x)
    for n in range(2):
        u = primary_capsules(params, x[n], 3)
        for layer, grid, kernel in LAYERS:
            W = params["layers"][layer]["kernel"]
            votes = [reference.prediction_vectors(s, W) for s in seen(u, grid, kernel)]
            u = np.concatenate([loops.kde(v, 3).pose for v in votes])
            if pose_norm == "auto":
                u = u / np.sqrt(sum(u.ravel() ** 2) / u.size + 1e-6)
        votes = reference.prediction_vectors(u, params["classes"]["kernel"])
        np.testing.assert_allclose(out.pose[n], loops.kde(votes, 3).pose, rtol=1e-10)


def inverted_attention(params, u, iterations):
    """Tsai et al. (2020), section 3.2, concurrent routing; scores and poses.

    Every layer is computed once from the one below. Then, in each of the other iterations, all
    layers take the poses of both the layer below and their own from the iteration before.
    """
    layers = [params["layers"][0], params["layers"][1], params["classes"]]

    def layer_poses(number, inputs, own):
        p, out = layers[number], []
        if number < 2:
            patches = seen(inputs, *LAYERS[number][1:])
        else:
            patches = inputs[None]
        for position, patch in enumerate(patches):
            votes = reference.prediction_vectors(patch, p["kernel"])
            n, J, D = votes.shape
            c = np.full((n, J), 1 / J)
            if own is not None:
                mine = own[position * J : (position + 1) * J]
                c = reference.over_parents(reference.agreement(votes, mine) / np.sqrt(D))
            s = reference.weighted_sum(c, votes)
            out += [loops.normalized(s[j]) * p["scale"] + p["offset"] for j in range(J)]
        return np.array(out)

    poses = [u]
    for number in range(3):
        poses.append(layer_poses(number, poses[-1], None))
    for _ in range(iterations - 1):
        poses = [u] + [layer_poses(n, poses[n], poses[n + 1]) for n in range(3)]
    p = layers[-1]
    return poses[-1] @ p["readout"] + p["readout_offset"], poses[-1]


def test_concurrent_schedule(x64):
    config = dataclasses.replace(DEEP, routing="inverted", routing_schedule="concurrent")
    model, params, x = in_float64(config, 1)
    direction = as_float64(filled(model, 1))
    a, b = np.random.default_rng(0).normal(size=(2, 3))

    def loss(params):
        out = model.apply(params, x)
        return jnp.sum(a * out.scores[0]) + jnp.sum(b[:, None] * out.pose[0]), out

    gradient, out = compiled(jax.grad(loss, has_aux=True), params)(params)

    def exact(params):
        return inverted_attention(params, primary_capsules(params, x[0], 3), 3)

    scores, pose = exact(params)
    np.testing.assert_allclose(out.scores[0], scores, rtol=1e-9)
    np.testing.assert_allclose(out.pose[0], pose, rtol=1e-9)

    def along(t):
        scores, pose = exact(jax.tree.map(lambda p, d: p + t * d, params, direction))
        return np.sum(a * scores) + np.sum(b[:, None] * pose)

    got = sum(jax.tree.leaves(jax.tree.map(lambda g, d: np.sum(g * d), gradient, direction)))
    np.testing.assert_allclose(got, reference.derivative(along, 0.0, 1.0), rtol=1e-8)
    # What it is not: layer after layer.
    other = create_model(dataclasses.replace(config, routing_schedule="sequential"))
    difference = compiled(other.apply, params, x)(params, x).scores - out.scores
    assert abs(np.asarray(difference)).max() > 1e-3


@pytest.mark.parametrize("routing", ["dynamic", "em"])
def test_one_layer_is_concurrent_with_itself(routing):
    config = dataclasses.replace(TINY, routing=routing, decoder=None)
    models = [
        create_model(dataclasses.replace(config, routing_schedule=schedule))
        for schedule in ("sequential", "concurrent")
    ]
    params, x = filled(models[0]), images()

    def both(params, x):
        return [model.apply(params, x)[:2] for model in models]

    exact, got = compiled(both, params, x)(params, x)
    np.testing.assert_allclose(got[0], exact[0], rtol=1e-5)
    np.testing.assert_allclose(got[1], exact[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("schedule", ["sequential", "concurrent"])
def test_constants_of_a_routing_are_not_trained(schedule):
    config = dataclasses.replace(
        TINY, routing="random", routing_schedule=schedule, decoder=None, squash="none"
    )
    model = create_model(config)

    def loss(params):
        return jnp.sum(model.apply(params, images()).pose)

    params = filled(model)
    gradient = compiled(jax.grad(loss), params)(params)["classes"]
    assert np.any(gradient["kernel"]) and not np.any(gradient["prior"])


# Efficient-CapsNet


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


def test_efficient_capsnet(x64):
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


def test_efficient_preset_is_what_is_tested_above():
    config = PRESETS["capsnet_efficient"]
    for name in ("conv_norm", "primary_depthwise", "primary_stride", "squash", "routing"):
        assert getattr(config, name) == getattr(EFFICIENT, name)
    assert config.primary_grid == (1, 1) and not config.capsule_layers


# Votes of the class capsules


VOTES = {
    "full": reference.prediction_vectors,
    "shared": loops.shared_votes,
    "conv": loops.conv_votes,
    "matrix": loops.matrix_votes,
    "conv_matrix": lambda u, W: loops.matrix_votes(u, np.concatenate([W] * (len(u) // len(W)))),
    "elementwise": loops.elementwise_votes,
}


@pytest.mark.parametrize("votes", VOTES)
def test_votes(votes):
    changes = {"votes": votes, "primary_pose": 4, "class_pose": 4, "decoder": None}
    config = dataclasses.replace(TINY, **changes)
    model, x = create_model(config), images(1)
    params = filled(model)
    out = compiled(model.apply, params, x)(params, x)
    p, image = as_float64(params), x[0].astype(np.float64)
    y = reference.convolution(image, p["conv"]["kernel"]) + p["conv"]["bias"]
    u = reference.primary_capsules(p["primary"], reference.positive(y), 4, config.primary_stride)
    routed = loops.dynamic(VOTES[votes](u, p["classes"]["kernel"]), 3)
    np.testing.assert_allclose(out.scores[0], routed.activation, rtol=1e-4)
    np.testing.assert_allclose(out.pose[0], routed.pose, rtol=1e-4, atol=1e-5)


# Coordinates


def test_coordinates():
    """Row and column go to the last column of a 3x3 pose, and nowhere else."""
    shape = {"primary_pose": 9, "class_pose": 9, "image_shape": (10, 8, 2), "decoder": None}
    config = dataclasses.replace(TINY, coordinates=True, **shape)
    assert config.primary_grid == (3, 2) and config.primary_types == 2
    model = create_model(config)
    params = filled(model)
    rng = np.random.default_rng(0)
    x = Capsules(rng.normal(size=(2, 12, 9)), rng.uniform(size=(2, 12)))
    x = jax.tree.map(np.float32, x)
    got = model.apply(params, x, method="_add_coordinates")
    exact = x.pose.copy().reshape(2, 3, 2, 2, 9)
    for row, column in np.ndindex(3, 2):
        exact[:, row, column, :, 2] += (row + 0.5) / 3
        exact[:, row, column, :, 5] += (column + 0.5) / 2
    np.testing.assert_allclose(got.pose, exact.reshape(2, 12, 9), rtol=1e-6)
    np.testing.assert_array_equal(got.activation, x.activation)
    plain = create_model(dataclasses.replace(config, coordinates=False))
    np.testing.assert_array_equal(plain.apply(params, x, method="_add_coordinates").pose, x.pose)


@pytest.mark.parametrize("schedule", ["sequential", "concurrent"])
def test_class_capsules_see_coordinates_of_the_grid_below_them(x64, schedule):
    """Here of a single layer, 3x2 positions, and of uniform routing: one pass."""
    changes = {"primary_pose": 4, "coordinates": True, "capsule_layers": ((3, 2, 1),)}
    config = dataclasses.replace(DEEP, routing="uniform", routing_schedule=schedule, **changes)
    model, params, x = in_float64(config, 1)
    u = primary_capsules(params, x[0], 4)
    W = params["layers"][0]["kernel"]
    votes = [reference.prediction_vectors(s, W) for s in seen(u, (4, 3), 2)]
    u = np.array([loops.uniform(v, squash="exponential").pose for v in votes])
    for position, (row, column) in enumerate(np.ndindex(3, 2)):
        u[position, :, 1] += (row + 0.5) / 3
        u[position, :, 3] += (column + 0.5) / 2
    votes = reference.prediction_vectors(u.reshape(-1, 4), params["classes"]["kernel"])
    exact = loops.uniform(votes, squash="exponential")
    out = compiled(model.apply, params, x)(params, x)
    np.testing.assert_allclose(out.pose[0], exact.pose, rtol=1e-6)  # coordinates are float32


@pytest.mark.parametrize("pool", [False, True])
def test_cnn_is_the_papers(pool):
    config = CNNConfig((7, 6, 2), 3, channels=(3, 4), kernels=(3, 2), pool=pool, dense=(6, 5))
    model = create_model(config)
    params = filled(model)
    x = images(2, config.image_shape)
    out = jax.jit(model.apply)(params, x)
    for n in range(2):
        exact = reference.cnn(as_float64(params), x[n].astype(np.float64), pool)
        np.testing.assert_allclose(out.scores[n], exact, rtol=1e-4, atol=1e-5)


def test_dropout_needs_a_key():
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


def test_bfloat16_is_close_to_float32():
    """bfloat16 has 8 bits: an error of 2^-8 per rounding, and a few roundings in a row."""
    _, params, apply = built()
    full, half = apply(params, images()), built(dtype="bfloat16")[2](params, images())
    assert all(a.dtype == jnp.float32 for a in half)
    np.testing.assert_allclose(half.scores, full.scores, atol=4 * 2**-8)
    np.testing.assert_allclose(half.reconstruction, full.reconstruction, atol=4 * 2**-8)
    assert abs(np.asarray(half.pose) - np.asarray(full.pose)).max() > 1e-5  # it did something
    for name in ("capsnet_tiny", "cnn_tiny"):
        shapes = jax.eval_shape(create_model(preset(name, dtype="bfloat16")).init, KEY)
        assert {p.dtype for p in jax.tree.leaves(shapes)} == {np.dtype("float32")}


# Bugs that other implementations have


def test_bug_capsules_are_cut_from_positions():
    """One type of capsule at one position lights up one capsule, with all its components."""
    model = from_module(lambda rngs: PrimaryCapsules(1, 3, 4, 2, 2, rngs=rngs))
    params = jax.tree.map(np.zeros_like, filled(model))
    # Type 1 alone, looking at the first pixel of its field.
    params["conv"]["kernel"][0, 0, 0, 4:8] = [1, 2, 3, 4]
    x = np.zeros((12, 6, 8, 1), np.float32)
    for n, (row, column) in enumerate(np.ndindex(3, 4)):
        x[n, 2 * row, 2 * column] = 1
    u, activation = jax.device_get(jax.jit(model.apply)(params, x))
    assert u.shape == (12, 3 * 4 * 3, 4) and activation.shape == (12, 3 * 4 * 3)
    for n in range(12):
        np.testing.assert_array_equal(np.flatnonzero(u[n].any(axis=1)), [3 * n + 1])
        exact = reference.squash(np.array([1.0, 2, 3, 4]))
        np.testing.assert_allclose(u[n, 3 * n + 1], exact, rtol=1e-5)
        np.testing.assert_allclose(activation[n, 3 * n + 1], reference.norm(exact), rtol=1e-5)
        np.testing.assert_array_equal(np.flatnonzero(activation[n]), [3 * n + 1])


def test_bug_predictions_depend_on_the_rest_of_the_batch():
    _, params, apply = built()
    x = images()
    together, alone = apply(params, x), apply(params, x[:1])
    others = x.copy()
    others[1:] = 0
    for one, many, mixed in zip(alone, together, apply(params, others), strict=True):
        assert one.shape == (1, *many.shape[1:])
        np.testing.assert_allclose(one[0], many[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(mixed[0], many[0], rtol=1e-5, atol=1e-6)


def test_bug_softmax_on_lengths():
    """Scores are the lengths of the poses; unlike probabilities they sum to anything."""
    _, params, apply = built()
    out = apply(params, images())
    exact = [[reference.norm(v) for v in pose] for pose in np.asarray(out.pose, np.float64)]
    np.testing.assert_allclose(out.scores, exact, rtol=1e-5)
    assert abs(np.sum(exact, axis=1) - 1).max() > 0.1


def test_bug_decoder_masked_by_its_own_guess_in_training():
    _, params, apply = built()
    guessed = apply(params, images())
    longest = np.argmax(guessed.scores, axis=1)
    right, wrong = (apply(params, images(), labels) for labels in (longest, (longest + 1) % 3))
    np.testing.assert_allclose(guessed.reconstruction, right.reconstruction, rtol=1e-6)
    assert abs(np.asarray(guessed.reconstruction) - np.asarray(wrong.reconstruction)).max() > 0.01
    # The label is not an input of the classifier.
    np.testing.assert_array_equal(wrong.scores, right.scores)
    np.testing.assert_array_equal(wrong.pose, right.pose)


def test_only_the_unmasked_capsule_is_drawn():
    model, (_, params, _) = create_model(TINY), built()
    pose = np.random.default_rng(0).normal(size=(1, 3, 4)).astype(np.float32)
    mask = np.array([[0, 1, 0]], np.float32)

    @jax.jit
    def decode(pose):
        def total(pose):
            image = model.apply(params, pose, mask, method="decode")
            return image.sum(), image

        return jax.grad(total, has_aux=True)(pose)

    influence, image = decode(pose)
    assert image.shape == (1, *TINY.image_shape) and 0 < image.min() and image.max() < 1
    np.testing.assert_array_equal(decode(pose + 10 * (1 - mask)[:, :, None])[1], image)
    assert np.any(influence, axis=2).tolist() == [[False, True, False]]


# Modules


def test_primary_scale_acts_before_the_bias():
    model = from_module(lambda rngs: PrimaryCapsules(1, 2, 3, 2, 1, scale=1 / 32, rngs=rngs))
    params, x = filled(model), images(1, (3, 4, 1))
    u = np.asarray(jax.jit(model.apply)(params, x).pose[0])
    exact = reference.primary_capsules(params, x[0], pose=3, stride=1, scale=1 / 32)
    np.testing.assert_allclose(u, exact, rtol=1e-4)
    wrong = copy.deepcopy(params)
    wrong["conv"]["bias"] /= 32
    assert abs(reference.primary_capsules(wrong, x[0], 3, 1, 1 / 32) - u).max() > 0.05


@pytest.mark.parametrize("squash", loops.SQUASHES)
def test_activations_are_lengths_below_one(squash):
    """Of the squashed pose, even where the pose is left as it is."""
    model = from_module(lambda rngs: PrimaryCapsules(1, 2, 3, 2, 1, squash=squash, rngs=rngs))
    params, x = filled(model), 9 * images(1, (3, 4, 1))
    pose, activation = (a[0] for a in jax.jit(model.apply)(params, x))
    y = reference.convolution(x[0], params["conv"]["kernel"]) + params["conv"]["bias"]
    y = y.astype(float).reshape(-1, 3)
    exact = [loops.SQUASHES[squash](u) for u in y]
    np.testing.assert_allclose(pose, exact, rtol=1e-4)
    bounded = loops.SQUASHES["paper" if squash == "none" else squash]
    np.testing.assert_allclose(activation, [reference.norm(bounded(u)) for u in y], rtol=1e-4)
    assert max(reference.norm(u) for u in y) > 2 and max(activation) < 1


@pytest.mark.parametrize("squash", ["none", "exponential"])
def test_activations_of_their_own(squash):
    """Matrix capsules: the probability of a type is a sigmoid of a second convolution."""
    model = from_module(
        lambda rngs: PrimaryCapsules(2, 3, 4, 2, 2, activation="sigmoid", squash=squash, rngs=rngs)
    )
    params, x = filled(model), images(2, (5, 7, 2))
    assert params["present"]["kernel"].shape == (2, 2, 2, 3)
    out = jax.jit(model.apply)(params, x)
    assert out.pose.shape == (2, 2 * 3 * 3, 4)
    for n in range(2):
        pose, logits = (
            reference.convolution(x[n], params[name]["kernel"], 2) + params[name]["bias"]
            for name in ("conv", "present")
        )
        exact = [loops.SQUASHES[squash](u) for u in pose.reshape(-1, 4)]
        np.testing.assert_allclose(out.pose[n], exact, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(out.activation[n], 1 / (1 + np.exp(-logits.ravel())), rtol=1e-5)


@pytest.mark.parametrize("gradient", ["full", "stop"])
def test_routed_capsules(gradient):
    """The layer is votes, then routing with its bias, iterations and gradient."""
    model = from_module(
        lambda rngs: RoutedCapsules(
            5,
            3,
            2,
            4,
            routing=make_routing("dynamic", iterations=2, bias=True),
            gradient=gradient,
            rngs=rngs,
        )
    )
    params = filled(model)
    W, bias = params["kernel"].astype(float), params["bias"].astype(float)
    assert W.shape == (5, 2, 4, 3) and bias.shape == (2, 4)
    u = np.random.default_rng(0).normal(size=(2, 5, 3))

    def poses(u):
        pose = model.apply(params, Capsules(u, np.ones((2, 5), np.float32))).pose
        return pose.sum(), pose

    du, out = jax.jit(jax.grad(poses, has_aux=True))(u.astype(np.float32))
    for n in range(2):
        routed = reference.routing(reference.prediction_vectors(u[n], W), 2, bias)
        np.testing.assert_allclose(out[n], routed.v, rtol=1e-4, atol=1e-6)

        def total(u, c=routed.c):
            votes = reference.prediction_vectors(u, W)
            if gradient == "stop":
                return np.sum(reference.routing_constant_coupling(votes, c, bias))
            return np.sum(reference.routing(votes, 2, bias).v)

        exact = reference.gradient(total, u[n])
        np.testing.assert_allclose(du[n], exact, atol=1e-5 * abs(exact).max())


def test_iterations_and_gradient_of_the_configuration_reach_the_layer():
    for iterations, gradient in [(1, "full"), (4, "stop"), (2, "last")]:
        config = dataclasses.replace(TINY, routing_iterations=iterations, routing_gradient=gradient)
        layer = nnx.eval_shape(lambda config=config: CapsNet(config, rngs=nnx.Rngs(0))).classes
        assert (layer.routing.passes, layer.options["gradient"]) == (iterations, gradient)


def test_options_of_the_configuration_reach_every_layer():
    changes = {
        "routing_iterations": 4,
        "routing_gradient": "stop",
        "routing_implementation": "naive",
        "routing_prior": "learned",
        "routing_bias": True,
        "layer_votes": "conv",
    }
    config = dataclasses.replace(DEEP, **changes)
    network = nnx.eval_shape(lambda: CapsNet(config, rngs=nnx.Rngs(0)))
    for layer in (*network.layers, network.classes):
        assert (layer.routing.name, layer.routing.passes) == ("dynamic", 4)
        assert layer.options == {"gradient": "stop", "implementation": "naive"}
        assert layer.names == ("prior", "bias")
    assert [layer.votes for layer in network.layers] == ["conv", "conv"]
    assert network.classes.votes == "full"
    assert [layer.grid for layer in network.layers] == [(3, 2), (2, 1)] and network.grid == (2, 1)
    # Options that a routing does not have are not used.
    for name, names in [("kmeans", ()), ("em", ("beta_u", "beta_a")), ("uniform", ("bias",))]:
        layer = nnx.eval_shape(
            lambda name=name: CapsNet(dataclasses.replace(config, routing=name), rngs=nnx.Rngs(0))
        ).classes
        assert layer.routing.name == name and layer.names == names


def test_poses_are_squashed_where_the_paper_of_the_routing_does():
    as_they_are = {"em", "vb", "self"}
    for routing in ("dynamic", "inverted", "self_attention", "kmeans", *as_they_are):
        squash = "none" if routing in as_they_are else "paper"
        config = dataclasses.replace(TINY, routing=routing)
        assert (config.squash, config.primary_squash) == ("auto", squash)
        assert dataclasses.replace(config, squash="half").primary_squash == "half"
    assert PRESETS["capsnet_matrix"].primary_squash == "none"
    assert PRESETS["capsnet_deep"].primary_squash == "exponential"
    assert PRESETS["capsnet_mnist"].primary_squash == "paper"


def test_em_takes_poses_as_they_are(x64):
    """All of a network: convolutions, poses without squash, their lengths after it, EM."""
    config = dataclasses.replace(TINY, routing="em", decoder=None)
    model, params, x = in_float64(config, 1)
    out = compiled(model.apply, params, x)(params, x)
    y = reference.convolution(x[0], params["conv"]["kernel"]) + params["conv"]["bias"]
    y = reference.convolution(reference.positive(y), params["primary"]["conv"]["kernel"], 2)
    u = (y + params["primary"]["conv"]["bias"]).reshape(-1, 3)
    p = dict(params["classes"])
    votes = reference.prediction_vectors(u, p.pop("kernel"))
    p["inverse_temperature"] = 1.152 * votes.shape[1] / votes.shape[0]  # fits the layer's sizes
    exact = loops.em(votes, np.array([reference.norm(reference.squash(v)) for v in u]), 3, **p)
    np.testing.assert_allclose(out.scores[0], exact.activation, rtol=1e-8)
    np.testing.assert_allclose(out.pose[0], exact.pose, rtol=1e-8)


def test_default_routing_of_a_layer_is_the_papers():
    layer = nnx.eval_shape(lambda: RoutedCapsules(5, 3, 2, 4, rngs=nnx.Rngs(0)))
    assert (layer.routing.name, layer.routing.passes, layer.names) == ("dynamic", 3, ())


@pytest.mark.parametrize(
    "make, x",
    [
        (lambda rngs: Conv(2, 3, 3, padding="SAME", rngs=rngs), np.zeros((4, 4, 2))),
        (lambda rngs: Decoder(6, (5,), (2, 3, 1), rngs=rngs), np.zeros((4, 6))),
        (
            lambda rngs: RoutedCapsules(5, 3, 2, 4, rngs=rngs),
            Capsules(np.zeros((1, 5, 3)), np.zeros(5)),
        ),
        (
            lambda rngs: ConvCapsules((2, 2), 5, 3, 2, 4, 1, rngs=rngs),
            Capsules(np.zeros((1, 20, 3)), np.zeros(20)),
        ),
        (
            lambda rngs: ConvCapsules((2, 2), 5, 3, 2, 4, 1, rngs=rngs),
            Capsules(np.zeros((2, 10, 3)), np.zeros((2, 10))),
        ),
    ],
    ids=["Conv", "Decoder", "RoutedCapsules", "ConvCapsules", "ConvCapsules positions"],
)
def test_arrays_of_another_shape_are_refused(make, x):
    model = from_module(make)
    params = jax.eval_shape(model.init, KEY)
    with pytest.raises(AssertionError):
        jax.eval_shape(model.apply, params, jax.tree.map(np.float32, x))


def test_first_matrices():
    """Votes of matrices start near the identity; of others a routing may ask for larger ones."""

    def kernel(votes, gain):
        routing = dataclasses.replace(make_routing("uniform"), gain=lambda sizes: gain * sizes.I)
        model = from_module(
            lambda rngs: RoutedCapsules(40, 9, 5, 9, routing=routing, votes=votes, rngs=rngs)
        )
        return np.asarray(model.init(jax.random.key(0, impl="rbg"))["kernel"])

    noise = kernel("full", 1)
    np.testing.assert_allclose(np.std(noise), 0.1 * 40, rtol=0.05)
    np.testing.assert_allclose(kernel("full", 3), 3 * noise, rtol=1e-6)
    for votes, gain in [("matrix", 1), ("matrix", 2), ("conv_matrix", 1)]:
        rest = kernel(votes, gain) - np.eye(3)
        assert rest.shape == (40 if votes == "matrix" else 1, 5, 3, 3)
        np.testing.assert_allclose(np.std(rest), 0.1, rtol=4 / np.sqrt(rest.size))
        assert abs(np.mean(rest, axis=(0, 1))).max() < 0.2


def test_decoder():
    model = from_module(lambda rngs: Decoder(6, (5, 4), (2, 3, 1), rngs=rngs))
    params = filled(model)
    pose = np.array([[[0, 0, 0], [1, -2, 3]]], np.float32)
    exact = reference.decode(as_float64(params), pose[0].astype(float), 1, (2, 3, 1))
    np.testing.assert_allclose(jax.jit(model.apply)(params, pose)[0], exact, rtol=1e-5)


# Initial parameters


def test_official_initial_parameters():
    """Truncated normals (0.05 in the first layer, 0.1 elsewhere), biases 0.1."""
    params = initial(**OFFICIAL)
    assert len(params) == 12
    for name, values in params.items():
        if name.endswith("bias"):
            np.testing.assert_array_equal(values, np.float32(0.1), name)
            continue
        stddev = 0.05 if name == "conv/kernel" else 0.1
        assert np.abs(values).max() <= 2 * stddev, name
        assert np.abs(values).max() > 1.9 * stddev, name
        # A normal cut at two standard deviations has 0.8796 of its standard deviation.
        tolerance = 4 / np.sqrt(values.size)
        assert abs(np.std(values) / stddev - 0.8796) < tolerance, name
        assert abs(np.mean(values) / stddev) < tolerance, name


def test_default_initial_parameters():
    params = initial()
    assert len(params) == 11 and "classes/bias" not in params
    for name, values in params.items():
        if name.endswith("bias"):
            np.testing.assert_array_equal(values, 0, name)
            continue
        fan_in = values.size / values.shape[-1]
        stddev = 0.1 if name == "classes/kernel" else fan_in**-0.5
        assert abs(np.std(values) / stddev - 1) < 4 / np.sqrt(values.size), name


def test_layers_start_from_different_random_numbers():
    params = initial(**OFFICIAL)
    kernels = [v.ravel()[:64] / np.std(v) for n, v in params.items() if n.endswith("kernel")]
    for a, b in np.ndindex(len(kernels), len(kernels)):
        assert a == b or abs(kernels[a] - kernels[b]).max() > 0.5


# Modules as pure functions


def test_from_module_is_the_module():
    key = jax.random.key(5)
    module = nnx.Linear(3, 2, rngs=nnx.Rngs(key))
    model = from_module(lambda rngs: nnx.Linear(3, 2, rngs=rngs))
    assert isinstance(model, Model)
    params = model.init(key)
    assert type(params) is dict and params.keys() == {"kernel", "bias"}
    np.testing.assert_array_equal(params["kernel"], module.kernel[...])
    x = np.ones((4, 3), np.float32)
    np.testing.assert_array_equal(model.apply(params, x), module(x))
    # A function of its argument, not of parameters that it has seen.
    np.testing.assert_array_equal(model.apply(jax.tree.map(np.zeros_like, params), x), 0)
    np.testing.assert_array_equal(model.apply(params, x), module(x))


def test_create_is_from_module_of_the_network():
    for config, network in [(TINY, CapsNet), (preset("cnn_tiny"), CNN)]:
        made = create_model(config), from_module(lambda rngs, n=network, c=config: n(c, rngs=rngs))
        one, two = (jax.eval_shape(model.init, KEY) for model in made)
        assert one == two


def test_other_methods():
    model, (_, params, _) = create_model(TINY), built()
    routed = jax.eval_shape(functools.partial(model.apply, method="encode"), params, images())
    assert routed.coupling.shape == (3, TINY.input_capsules, 3) and routed.aux is None
    streamed = create_model(dataclasses.replace(TINY, routing_implementation="stream"))
    routed = jax.eval_shape(functools.partial(streamed.apply, method="encode"), params, images())
    assert routed.pose.shape == (3, 3, TINY.class_pose) and routed.coupling is None
    with pytest.raises(AttributeError):
        model.apply(params, images(), method="enchant")


@pytest.mark.parametrize("implementation", ["naive", "stream"])
def test_trace_of_the_class_capsules(implementation):
    changes = {"capsule_layers": ((2, 2, 1),), "routing_implementation": implementation}
    config = dataclasses.replace(TINY, image_shape=(10, 9, 2), decoder=None, **changes)
    model, x = create_model(config), images(2, config.image_shape)
    params = filled(model)
    encode = functools.partial(model.apply, method="encode", trace=True)
    out = compiled(encode, params, x)(params, x)
    I = params["classes"]["kernel"].shape[0]
    assert I == 2 * 2 * 2
    assert out.aux.logits.shape == out.aux.coupling.shape == (2, 3, I, 3)
    assert out.aux.pose.shape == (2, 3, 3, 4) and out.aux.activation.shape == (2, 3, 3)
    np.testing.assert_array_equal(out.aux.pose[:, -1], out.pose)
    np.testing.assert_array_equal(out.aux.coupling[:, -1], out.coupling)
    np.testing.assert_allclose(out.aux.coupling[:, 0], 1 / 3, rtol=1e-6)
    assert abs(np.asarray(out.aux.pose[:, 0] - out.pose)).max() > 1e-3


def test_seeds_are_a_vmap():
    model = from_module(lambda rngs: Decoder(2, (), (1, 2, 1), rngs=rngs))
    keys = jax.random.split(KEY, 2)
    many = jax.jit(jax.vmap(model.init))(keys)
    kernels = np.asarray(many["layers"][0]["kernel"])
    assert abs(kernels[0] - kernels[1]).max() > 0.1
    for n in range(2):
        for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(model.init(keys[n])), strict=True):
            np.testing.assert_allclose(a[n], b, rtol=1e-6)

    _, _, apply = built()
    model = create_model(TINY)
    networks = [filled(model, seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *networks)
    out = jax.jit(jax.vmap(model.apply, (0, None)))(stacked, images())
    for n in range(2):
        for a, b in zip(out, apply(networks[n], images()), strict=True):
            np.testing.assert_allclose(a[n], b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda rngs: nnx.BatchNorm(3, rngs=rngs), "BatchStat"),
        (lambda rngs: nnx.Dropout(0.5, rngs=rngs), "Rng"),
    ],
    ids=["BatchNorm", "Dropout"],
)
def test_from_module_rejects_other_variables(make, name):
    with pytest.raises(TypeError, match=f"only nnx.Param .*{name}"):
        from_module(make)


def test_count_parameters():
    shapes = jax.eval_shape(lambda: {"a": jnp.zeros((3, 4)), "b": [jnp.zeros(5), jnp.zeros(())]})
    assert count_parameters(shapes) == 18
    assert count_parameters({}) == 0
