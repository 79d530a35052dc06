"""Modules of capsules: primary capsules and routed capsules."""

import copy
import dataclasses
import functools

import jax
import numpy as np
import pytest
import reference
import reference_routing as loops
from flax import nnx
from helpers import filled
from small_networks import KEY, images

from capsjax import (
    Capsules,
    Conv,
    ConvCapsules,
    Decoder,
    PrimaryCapsules,
    RoutedCapsules,
    RoutingTraits,
    from_module,
    make_routing,
)
from capsjax.placed_capsules import PlacedCapsules
from capsjax.routing import dynamic, route


def test_bug_capsules_are_cut_from_channels():
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
    """The activation is the length of the squashed pose, even where the pose is not squashed."""
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
def test_sigmoid_activations(squash):
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
def test_routed_capsules_equal_reference(gradient):
    """Computes the votes, then routing with its bias, iterations and gradient."""
    model = from_module(
        lambda rngs: RoutedCapsules(
            5,
            3,
            2,
            4,
            routing=make_routing("dynamic", iterations=2, bias=True, scale=1.0),
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


def test_default_routing_of_a_layer_is_dynamic():
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


def test_initial_vote_matrices():
    """Vote matrices start near the identity; for other votes a routing may set a larger scale."""

    def kernel(votes, gain):
        traits = RoutingTraits(init_scale=lambda sizes: gain * sizes.I)
        routing = dataclasses.replace(make_routing("uniform"), traits=traits)
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


def test_an_array_of_poses_has_its_lengths_as_activations():
    """As the layers of other libraries take it; EM, whose result depends on activations."""
    poses = images(2, (5, 4, 1))[..., 0]
    lengths = np.sqrt(np.square(np.float64(poses)).sum(axis=-1))
    model = from_module(
        lambda rngs: RoutedCapsules(5, 4, 3, 2, routing=make_routing("em"), rngs=rngs)
    )
    params = filled(model)
    got = jax.jit(model.apply)(params, poses)
    want = model.apply(params, Capsules(poses, np.float32(lengths)))
    np.testing.assert_allclose(got.pose, want.pose, rtol=1e-5)
    np.testing.assert_allclose(got.activation, want.activation, rtol=1e-5)
    layer = from_module(lambda rngs: ConvCapsules((2, 2), 1, 4, 3, 2, 2, rngs=rngs))
    grid = poses[:, :4]
    one, other = (
        layer.apply(filled(layer), x) for x in (grid, Capsules(grid, np.float32(lengths[:, :4])))
    )
    np.testing.assert_allclose(one.pose, other.pose, rtol=1e-6)


@pytest.mark.parametrize(
    "wrong, named",
    [
        (np.zeros((5, 4), np.float32), r"an array of shape \(5, 4\)"),
        ((np.zeros((2, 5, 4), np.float32), np.zeros((2, 5), np.float32)), "not tuple"),
        ([[1.0]], "not list"),
        (None, "not NoneType"),
    ],
)
def test_inputs_that_are_no_capsules_are_refused_by_name(wrong, named):
    model = from_module(lambda rngs: RoutedCapsules(5, 4, 3, 2, rngs=rngs))
    params = filled(model)
    for apply in (model.apply, jax.jit(model.apply)):
        with pytest.raises(TypeError, match=rf"Capsules or an array of poses \[B, I, K\].*{named}"):
            apply(params, wrong)


def test_layers_without_inputs_or_of_unknown_votes_are_refused():
    with pytest.raises(ValueError, match="votes must be one of .* not 'ful'"):
        RoutedCapsules(4, 4, 2, 4, votes="ful", rngs=nnx.Rngs(0))
    grid = functools.partial(ConvCapsules, (2, 2), 1, 4, 3, 4, 2, routing="em")
    placed = functools.partial(PlacedCapsules, 4, 4, 2, 4, places=((0.0, 1.0), (0.0, 1.0)))
    for layer in (grid, placed, functools.partial(RoutedCapsules, 4, 4, 2, 4)):
        for option in ("implementation", "gradient"):
            with pytest.raises(ValueError, match=f"{option} must be one of .* not 'steam'"):
                layer(**{option: "steam"}, rngs=nnx.Rngs(0))
    layer = placed(rngs=nnx.Rngs(0))
    with pytest.raises(AssertionError):
        layer(Capsules(np.ones((2, 4, 4), np.float32), np.ones((2, 1), np.float32)))
    for implementation in ("naive", "stream"):
        with pytest.raises(ValueError, match="there are no input capsules"):
            u, W = np.zeros((2, 0, 3), np.float32), np.zeros((0, 4, 5, 3), np.float32)
            route(dynamic(), {}, u, W, implementation=implementation)
