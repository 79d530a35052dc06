"""Networks: sizes that pin the paper's architectures, forward passes, pure functions."""

import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx

from capsjax import (
    CNN,
    PRESETS,
    CapsNet,
    CapsNetConfig,
    CNNConfig,
    Decoder,
    Model,
    PrimaryCapsules,
    RoutedCapsules,
    count_parameters,
    create,
    from_module,
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
KEY = jax.random.key(0)


@functools.cache
def built(**changes):
    """A tiny network: configuration, parameters without zeros, compiled apply."""
    config = dataclasses.replace(TINY, **changes)
    model = create(config)
    return config, filled(model), jax.jit(model.apply)


@functools.cache
def initial(**changes):
    """Initial parameters of the tiny preset by name, and their number."""
    key = jax.random.key(0, impl="rbg")  # compiles in a tenth of the time of threefry
    params = jax.jit(create(preset("capsnet_tiny", **changes)).init)(key)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(x) for p, x in leaves}


def images(n=3, shape=TINY.image_shape, seed=0):
    return np.random.default_rng(seed).uniform(size=(n, *shape)).astype(np.float32)


def filled(model, seed=0):
    """Random parameters. Zero biases, say, would leave their use untested."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, KEY)
    return jax.tree.map(lambda p: (0.5 * rng.normal(size=p.shape)).astype(np.float32), shapes)


def as_float64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


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
    ],
    ids=str,
)
def test_parameters_of_the_papers_networks(config, parameters):
    shapes = jax.eval_shape(create(config).init, KEY)  # allocates nothing
    assert count_parameters(shapes) == parameters
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_network(name):
    config = PRESETS[name]
    model = create(config)
    params = jax.eval_shape(model.init, KEY)
    x = jax.ShapeDtypeStruct((3, *config.image_shape), jnp.float32)
    out = jax.eval_shape(model.apply, params, x)
    assert out.scores.shape == (3, config.num_classes)
    if isinstance(config, CapsNetConfig):
        assert out.pose.shape == (3, config.num_classes, config.class_pose)
        assert out.reconstruction.shape == x.shape
    else:
        assert out.pose is None and out.reconstruction is None


def test_primary_capsules_of_mnist():
    assert PRESETS["capsnet_mnist"].input_capsules == 1152  # 6 x 6 x 32
    assert PRESETS["capsnet_multimnist"].input_capsules == 3200  # 10 x 10 x 32
    assert preset("capsnet_mnist", image_shape=(40, 28, 1)).input_capsules == 12 * 6 * 32


# Bug: a negative dimension, or a crash deep inside the framework.
def test_smallest_image():
    for shape in [(16, 28, 1), (28, 16, 1), (16, 16, 3)]:
        with pytest.raises(ValueError, match=f"{shape[0]}x{shape[1]}.*smallest image is 17x17"):
            preset("capsnet_mnist", image_shape=shape)
    with pytest.raises(ValueError, match="smallest image is 7x7"):
        dataclasses.replace(TINY, conv_kernel=5, image_shape=(6, 9, 2))


@pytest.mark.parametrize("shape", [(17, 17, 3), (21, 30, 1), (18, 17, 2)])
def test_other_images(shape):
    config = preset("capsnet_tiny", image_shape=shape, num_classes=2)
    model = create(config)
    params = jax.eval_shape(model.init, KEY)
    out = jax.eval_shape(model.apply, params, images(4, shape), np.zeros(4, int))
    assert params["classes"]["kernel"].shape[0] == config.input_capsules
    assert out.scores.shape == (4, 2) and out.reconstruction.shape == (4, *shape)


def test_images_of_another_shape_are_rejected():
    for config in (TINY, CNNConfig(image_shape=TINY.image_shape)):
        model = create(config)
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
        create(CNNConfig(channels=(4, 4), kernels=(5,)))
    assert preset("capsnet_mnist", num_classes=7).num_classes == 7
    assert PRESETS["capsnet_mnist"].num_classes == 10


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
    model = create(dataclasses.replace(TINY, dtype="float64", decoder=None, routing_bias=True))
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


@pytest.mark.parametrize("pool", [False, True])
def test_cnn_is_the_papers(pool):
    config = CNNConfig((7, 6, 2), 3, channels=(3, 4), kernels=(3, 2), pool=pool, dense=(6, 5))
    model = create(config)
    params = filled(model)
    x = images(2, config.image_shape)
    out = jax.jit(model.apply)(params, x)
    for n in range(2):
        exact = reference.cnn(as_float64(params), x[n].astype(np.float64), pool)
        np.testing.assert_allclose(out.scores[n], exact, rtol=1e-4, atol=1e-5)


def test_dropout_needs_a_key():
    config = CNNConfig((4, 4, 1), 3, channels=(2,), kernels=(1,), dense=(8,), dropout=0.25)
    model = create(config)
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
        shapes = jax.eval_shape(create(preset(name, dtype="bfloat16")).init, KEY)
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
    u = np.asarray(jax.jit(model.apply)(params, x))
    assert u.shape == (12, 3 * 4 * 3, 4)
    for n in range(12):
        np.testing.assert_array_equal(np.flatnonzero(u[n].any(axis=1)), [3 * n + 1])
        exact = reference.squash(np.array([1.0, 2, 3, 4]))
        np.testing.assert_allclose(u[n, 3 * n + 1], exact, rtol=1e-5)


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
    model, (_, params, _) = create(TINY), built()
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
    u = np.asarray(jax.jit(model.apply)(params, x)[0])
    exact = reference.primary_capsules(params, x[0], pose=3, stride=1, scale=1 / 32)
    np.testing.assert_allclose(u, exact, rtol=1e-4)
    wrong = copy.deepcopy(params)
    wrong["conv"]["bias"] /= 32
    assert abs(reference.primary_capsules(wrong, x[0], 3, 1, 1 / 32) - u).max() > 0.05


@pytest.mark.parametrize("gradient", ["full", "stop"])
def test_routed_capsules(gradient):
    """The layer is votes, then routing with its bias, iterations and gradient."""
    model = from_module(
        lambda rngs: RoutedCapsules(
            5, 3, 2, 4, iterations=2, gradient=gradient, bias_init=nnx.initializers.zeros,
            rngs=rngs,
        )
    )
    params = filled(model)
    W, bias = params["kernel"].astype(float), params["bias"].astype(float)
    assert W.shape == (5, 2, 4, 3) and bias.shape == (2, 4)
    u = np.random.default_rng(0).normal(size=(2, 5, 3))

    def poses(u):
        pose = model.apply(params, u).pose
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
        config = dataclasses.replace(
            TINY, routing_iterations=iterations, routing_gradient=gradient
        )
        layer = nnx.eval_shape(lambda config=config: CapsNet(config, rngs=nnx.Rngs(0))).classes
        options = layer.options
        assert (options["iterations"], options["gradient"]) == (iterations, gradient)


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
        made = create(config), from_module(lambda rngs, n=network, c=config: n(c, rngs=rngs))
        one, two = (jax.eval_shape(model.init, KEY) for model in made)
        assert one == two


def test_other_methods():
    model, (_, params, _) = create(TINY), built()
    routed = jax.eval_shape(functools.partial(model.apply, method="encode"), params, images())
    assert routed.coupling.shape == (3, TINY.input_capsules, 3)
    streamed = create(dataclasses.replace(TINY, routing_implementation="stream"))
    routed = jax.eval_shape(functools.partial(streamed.apply, method="encode"), params, images())
    assert routed.pose.shape == (3, 3, TINY.class_pose) and routed.coupling is None
    with pytest.raises(AttributeError):
        model.apply(params, images(), method="enchant")


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
    model = create(TINY)
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
