"""Capsule networks: the forward pass and its gradient against loops in NumPy."""

import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import reference_routing as loops
from helpers import as_float64, compiled, filled
from small_networks import (
    DEEP,
    KEY,
    LAYERS,
    OFFICIAL,
    TINY,
    built,
    create_model,
    expected,
    images,
    in_float64,
    primary_capsules,
    seen,
)

from capsjax import (
    CNNConfig,
    margin_loss,
    preset,
)


@pytest.mark.parametrize("shape", [(17, 17, 3), (21, 30, 1), (18, 17, 2)])
def test_presets_accept_other_image_shapes(shape):
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
def test_capsnet_equals_reference(changes, labels):
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


def test_capsnet_scores_and_gradient_in_float64(x64):
    """Checks scores and the derivative of the margin loss along a random direction."""
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


def test_deep_network_equals_reference(x64):
    """Applies the reference layer by layer."""
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
            p = params["layers"][str(layer)]
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
def test_mean_poses_are_normalized_between_layers(x64, pose_norm):
    config = dataclasses.replace(DEEP, routing="kde", pose_norm=pose_norm)
    model, params, x = in_float64(config)
    encode = functools.partial(model.apply, method="encode")
    out = compiled(encode, params, x)(params, x)
    for n in range(2):
        u = primary_capsules(params, x[n], 3)
        for layer, grid, kernel in LAYERS:
            W = params["layers"][str(layer)]["kernel"]
            votes = [reference.prediction_vectors(s, W) for s in seen(u, grid, kernel)]
            u = np.concatenate([loops.kde(v, 3, DEEP.squash).pose for v in votes])
            if pose_norm == "auto":
                u = u / np.sqrt(sum(u.ravel() ** 2) / u.size + 1e-6)
        votes = reference.prediction_vectors(u, params["classes"]["kernel"])
        exact = loops.kde(votes, 3, DEEP.squash).pose
        np.testing.assert_allclose(out.pose[n], exact, rtol=1e-10)


@pytest.mark.parametrize("schedule", ["sequential", "concurrent"])
def test_routing_constants_have_zero_gradient(schedule):
    config = dataclasses.replace(
        TINY, routing="random", routing_schedule=schedule, decoder=None, squash="none"
    )
    model = create_model(config)

    def loss(params):
        return jnp.sum(model.apply(params, images()).pose)

    params = filled(model)
    gradient = compiled(jax.grad(loss), params)(params)["classes"]
    assert np.any(gradient["kernel"]) and not np.any(gradient["prior"])


VOTES = {
    "full": reference.prediction_vectors,
    "shared": loops.shared_votes,
    "conv": loops.conv_votes,
    "matrix": loops.matrix_votes,
    "conv_matrix": lambda u, W: loops.matrix_votes(u, np.concatenate([W] * (len(u) // len(W)))),
    "elementwise": loops.elementwise_votes,
}


@pytest.mark.parametrize("votes", VOTES)
def test_network_of_every_kind_of_votes(votes):
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


def test_coordinates_are_added_to_the_last_column_of_votes():
    """Row and column are added to the last column of a 3x3 vote and nowhere else."""
    shape = {"primary_pose": 9, "class_pose": 9, "image_shape": (10, 8, 2), "decoder": None}
    config = dataclasses.replace(TINY, coordinates="grid", votes="matrix", **shape)
    assert config.primary_grid == (3, 2) and config.primary_types == 2
    model, plain = (
        create_model(dataclasses.replace(config, coordinates=c)) for c in ("grid", "none")
    )
    params, x = filled(model), images(2, config.image_shape)
    exact = np.array(plain.apply(params, x, method="votes")).reshape(2, 3, 2, 2, 3, 9)
    for row, column in np.ndindex(3, 2):
        exact[:, row, column, :, :, 2] += (row + 0.5) / 3
        exact[:, row, column, :, :, 5] += (column + 0.5) / 2
    got = model.apply(params, x, method="votes")
    np.testing.assert_allclose(got, exact.reshape(2, 12, 3, 9), rtol=1e-6)


@pytest.mark.parametrize("schedule", ["sequential", "concurrent"])
def test_class_capsules_receive_coordinates_of_their_input_grid(x64, schedule):
    """Checks one layer of 3x2 positions with uniform routing, which has one pass."""
    changes = {"primary_pose": 4, "coordinates": "grid", "capsule_layers": ((3, 2, 1),)}
    config = dataclasses.replace(DEEP, routing="uniform", routing_schedule=schedule, **changes)
    model, params, x = in_float64(config, 1)
    u = primary_capsules(params, x[0], 4)
    W = params["layers"]["0"]["kernel"]
    votes = [reference.prediction_vectors(s, W) for s in seen(u, (4, 3), 2)]
    u = np.array([loops.uniform(v, squash="exponential").pose for v in votes])
    votes = reference.prediction_vectors(u.reshape(-1, 4), params["classes"]["kernel"])
    votes = votes.reshape(3, 2, 3, 3, 4)  # rows, columns, types, classes
    for row, column in np.ndindex(3, 2):
        votes[row, column, :, :, 1] += (row + 0.5) / 3
        votes[row, column, :, :, 3] += (column + 0.5) / 2
    votes = votes.reshape(18, 3, 4)
    exact = loops.uniform(votes, squash="exponential")
    out = compiled(model.apply, params, x)(params, x)
    np.testing.assert_allclose(out.pose[0], exact.pose, rtol=1e-6)  # coordinates are float32


def test_bfloat16_is_close_to_float32():
    """Allows for a few roundings in a row, each with the error 2^-8 of bfloat16."""
    _, params, apply = built()
    full, half = apply(params, images()), built(dtype="bfloat16")[2](params, images())
    assert all(a.dtype == jnp.float32 for a in half)
    np.testing.assert_allclose(half.scores, full.scores, atol=4 * 2**-8)
    np.testing.assert_allclose(half.reconstruction, full.reconstruction, atol=4 * 2**-8)
    assert abs(np.asarray(half.pose) - np.asarray(full.pose)).max() > 1e-5  # it did something
    for name in ("capsnet_tiny", "cnn_tiny"):
        shapes = jax.eval_shape(create_model(preset(name, dtype="bfloat16")).init, KEY)
        assert {p.dtype for p in jax.tree.leaves(shapes)} == {np.dtype("float32")}


def test_bug_predictions_do_not_depend_on_the_rest_of_the_batch():
    _, params, apply = built()
    x = images()
    together, alone = apply(params, x), apply(params, x[:1])
    others = x.copy()
    others[1:] = 0
    for one, many, mixed in zip(alone, together, apply(params, others), strict=True):
        assert one.shape == (1, *many.shape[1:])
        np.testing.assert_allclose(one[0], many[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(mixed[0], many[0], rtol=1e-5, atol=1e-6)


def test_bug_scores_are_lengths_without_softmax():
    """Scores are the lengths of the poses; unlike probabilities they need not sum to one."""
    _, params, apply = built()
    out = apply(params, images())
    exact = [[reference.norm(v) for v in pose] for pose in np.asarray(out.pose, np.float64)]
    np.testing.assert_allclose(out.scores, exact, rtol=1e-5)
    assert abs(np.sum(exact, axis=1) - 1).max() > 0.1


def test_bug_decoder_is_masked_by_the_label_in_training():
    _, params, apply = built()
    guessed = apply(params, images())
    longest = np.argmax(guessed.scores, axis=1)
    right, wrong = (apply(params, images(), labels) for labels in (longest, (longest + 1) % 3))
    np.testing.assert_allclose(guessed.reconstruction, right.reconstruction, rtol=1e-6)
    assert abs(np.asarray(guessed.reconstruction) - np.asarray(wrong.reconstruction)).max() > 0.01
    # The label is not an input of the classifier.
    np.testing.assert_array_equal(wrong.scores, right.scores)
    np.testing.assert_array_equal(wrong.pose, right.pose)


def test_decoder_sees_only_the_unmasked_capsule():
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


def test_em_receives_normalized_poses(x64):
    """Computes a whole network: convolutions, normalized poses, their presence, EM."""
    config = dataclasses.replace(TINY, routing="em", decoder=None)
    model, params, x = in_float64(config, 1)
    out = compiled(model.apply, params, x)(params, x)
    first = reference.convolution(x[0], params["conv"]["kernel"]) + params["conv"]["bias"]
    y = reference.convolution(reference.positive(first), params["primary"]["conv"]["kernel"], 2)
    u = (y + params["primary"]["conv"]["bias"]).reshape(-1, 3)
    u = np.array([(one - one.mean()) / np.sqrt(one.var() + 1e-5) for one in u])
    p = dict(params["classes"])
    votes = reference.prediction_vectors(u, p.pop("kernel"))
    logits = reference.convolution(
        reference.positive(first), params["primary"]["present"]["kernel"], 2
    )
    logits = (logits + params["primary"]["present"]["bias"]).ravel()
    p["cost_scale"] = 100 * votes.shape[1] / votes.shape[0]  # Gritzman (2019)
    exact = loops.em(votes, np.array([loops.sigmoid(v) for v in logits]), 3, **p)
    np.testing.assert_allclose(out.scores[0], exact.activation, rtol=1e-8)
    np.testing.assert_allclose(out.pose[0], exact.pose, rtol=1e-8)


def test_methods_other_than_the_forward_pass():
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


def test_images_are_standardized_within_the_network():
    """As if NumPy had done it before; the decoder reconstructs the same from the same capsules."""
    changes = dict(image_shape=(20, 20, 3), num_classes=3)
    images = np.random.default_rng(0).uniform(0.4, 1, (2, 20, 20, 3)).astype(np.float32)
    pixels = images.astype(np.float64)
    mean, deviation = (f(pixels, axis=(1, 2, 3), keepdims=True) for f in (np.mean, np.std))
    inside = create_model(preset("capsnet_tiny", input_norm="image", **changes))
    plain = create_model(preset("capsnet_tiny", **changes))
    params = plain.init(jax.random.key(0))
    got = inside.apply(params, images)
    want = plain.apply(params, np.float32((pixels - mean) / deviation))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-6), got, want)
