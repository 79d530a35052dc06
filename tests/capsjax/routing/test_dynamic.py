"""Votes and routing by agreement: equations 2 and 3, Procedure 1, the gradient modes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.test_util import check_grads

from capsjax import dynamic_routing, prediction_vectors
from capsjax.routing import (
    GRADIENTS,
    RoutingOutput,
    agreement,
    field_softmax,
    normalize,
    weighted_sum,
)
from capsjax.routing.diagnostics import coupling_entropy
from capsjax.routing.equations import standardize
from capsjax.routing.moments import Sums, moments, sums

# (I, J, D)
SHAPES = [(6, 3, 4), (1, 3, 4), (5, 1, 4), (5, 3, 1), (1, 1, 1)]


def data(I, J, D, seed=0):
    """Votes that agree enough for routing to move and too little to settle it; a bias."""
    rng = np.random.default_rng(seed)
    votes = rng.normal(size=(I, J, D)) + 0.7 * rng.normal(size=(J, D))
    return votes, 0.3 * rng.normal(size=(J, D))


def single(*shape, seed=0):
    return [x.astype(np.float32) for x in data(*shape, seed=seed)]


@functools.cache
def jitted(iterations=3, gradient="full"):
    """Routing as a compiled function of (votes, bias) that gives NumPy arrays."""
    route = jax.jit(
        lambda votes, bias: dynamic_routing(votes, iterations, bias=bias, gradient=gradient)
    )
    return lambda votes, bias=None: RoutingOutput(*map(np.asarray, route(votes, bias)[:3]))


@functools.cache
def jitted_gradient(iterations, gradient):
    """Gradients of sum(weight * pose) by votes and bias, and the pose."""

    def loss(votes, bias, weight):
        pose = dynamic_routing(votes, iterations, bias=bias, gradient=gradient).pose
        return jnp.sum(weight * pose), pose

    return jax.jit(jax.grad(loss, (0, 1), has_aux=True))


# Prediction vectors


@pytest.mark.parametrize("I, J, D, K", [(4, 3, 2, 5), (1, 3, 2, 4), (4, 1, 2, 3), (3, 2, 1, 1)])
def test_prediction_vectors(x64, I, J, D, K):
    rng = np.random.default_rng(0)
    u, W, g = rng.normal(size=(I, K)), rng.normal(size=(I, J, D, K)), rng.normal(size=(I, J, D))
    votes, vjp = jax.vjp(prediction_vectors, u, W)
    np.testing.assert_allclose(votes, reference.prediction_vectors(u, W), rtol=1e-12, atol=1e-13)
    du, dW = vjp(jnp.asarray(g))
    exact = reference.gradient(lambda u: np.sum(g * reference.prediction_vectors(u, W)), u)
    np.testing.assert_allclose(du, exact, rtol=1e-10, atol=1e-12)
    exact = reference.gradient(lambda W: np.sum(g * reference.prediction_vectors(u, W)), W)
    np.testing.assert_allclose(dW, exact, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_votes_are_accumulated_in_float32(dtype):
    u, W = jnp.ones((2, 1024), dtype), jnp.ones((2, 1, 1, 1024), dtype)
    u = u.at[0, 0].set(1.5)
    votes = prediction_vectors(u, W)
    assert votes.dtype == jnp.float32
    np.testing.assert_array_equal(votes[:, 0, 0], [1024.5, 1024])  # bfloat16 has 1024 and 1032


@pytest.mark.parametrize(
    "u, W", [((3, 4), (2, 5, 6, 4)), ((2, 3), (2, 5, 6, 4)), ((4,), (2, 5, 4))]
)
def test_prediction_vectors_reject_wrong_shapes(u, W):
    with pytest.raises(AssertionError):
        prediction_vectors(jnp.zeros(u), jnp.zeros(W))


# The parts of Procedure 1


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[-1]])
def test_parts(x64, shape):
    votes, v = data(*shape)
    b = np.random.default_rng(1).normal(size=shape[:2])
    c = reference.over_parents(b)
    np.testing.assert_allclose(normalize(b), c, rtol=1e-12)
    s = reference.weighted_sum(c, votes)
    np.testing.assert_allclose(weighted_sum(c, votes), s, rtol=1e-11)
    np.testing.assert_allclose(
        agreement(votes, v), reference.agreement(votes, v), rtol=1e-11, atol=1e-13
    )


def zeros(*shapes):
    return [np.zeros(shape) for shape in shapes]


@pytest.mark.parametrize(
    "function, wrong",
    [
        (weighted_sum, [(4,), (4, 3, 2)]),
        (weighted_sum, [(4, 3), (4, 3)]),
        (weighted_sum, [(4, 3), (4, 1, 2)]),  # which einsum would broadcast
        (weighted_sum, [(1, 3), (4, 3, 2)]),
        (agreement, [(4, 3, 2), (4, 3, 2)]),
        (agreement, [(3, 2), (3, 2)]),
        (agreement, [(4, 3, 2), (1, 2)]),
        (agreement, [(4, 3, 2), (3, 1)]),
        (standardize, [()]),
        (standardize, [(4, 3, 2)]),
        (normalize, [(3,)]),
        (normalize, [(2, 4, 3, 1)]),
        (field_softmax, [(2, 4, 3), (2, 4, 3)]),
        (field_softmax, [(4, 3), (2, 4)]),
        (field_softmax, [(2, 4, 3), (4, 2)]),
        (sums, [(4,), (4, 3, 2), (3, 2)]),
        (sums, [(4, 3), (4, 3, 2), (2,)]),
        (sums, [(4, 1), (4, 3, 2), (3, 2)]),
        (sums, [(4, 3, 2), (4, 3, 2), (3, 2)]),
        (sums, [(4, 3), (4, 3, 2), (1, 2)]),
        (moments, [Sums(*zeros((3, 1), (3, 2), (3, 2))), (3, 2)]),
        (moments, [Sums(*zeros(3, (3, 2), (3, 1))), (3, 2)]),
        (moments, [Sums(*zeros(3, (3, 2), (3, 2))), (1, 2)]),
        (moments, [Sums(*zeros(1, (3, 2), (3, 2))), (3, 2)]),
        (coupling_entropy, [()]),
    ],
)
def test_wrong_ranks_and_sizes_are_rejected(function, wrong):
    with pytest.raises(AssertionError):
        function(*(x if isinstance(x, Sums) else np.zeros(x) for x in wrong))


# Procedure 1


@pytest.mark.parametrize(
    "iterations, shape, with_bias",
    [(r, SHAPES[0], True) for r in (1, 2, 4, 5)]
    + [(3, shape, True) for shape in SHAPES]
    + [(3, SHAPES[0], False)],
)
def test_routing_is_procedure_1(x64, shape, iterations, with_bias):
    votes, bias = data(*shape)
    bias = bias if with_bias else None
    exact = reference.routing(votes, iterations, bias)
    out = jitted(iterations)(votes, bias)
    np.testing.assert_allclose(out.pose, exact.v, rtol=1e-11)
    np.testing.assert_allclose(out.activation, exact.lengths, rtol=1e-11)
    np.testing.assert_allclose(out.coupling, exact.c, rtol=1e-11)


def differentiated(votes, bias, iterations, gradient):
    """v as the function of (votes, bias) whose derivative a mode takes.

    The derivative is taken by a complex step, so real parts are the base point, where
    constants keep their values.
    """
    base = reference.routing(np.real(votes), iterations, np.real(bias))
    if gradient == "full":
        return reference.routing(votes, iterations, bias).v
    if gradient == "stop":
        return reference.routing_constant_coupling(votes, base.c, bias)
    return reference.routing_constant_outputs(votes, base.earlier, bias)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize(
    "iterations, shape",
    [(1, SHAPES[0]), (3, SHAPES[0]), (2, SHAPES[3])],
)
def test_gradient_modes(x64, shape, iterations, gradient):
    votes, bias = data(*shape)
    rng = np.random.default_rng(2)
    weight = rng.normal(size=shape[1:])
    (dvotes, dbias), _ = jitted_gradient(iterations, gradient)(votes, bias, weight)

    def along(direction, which):
        def f(x):
            args = (x, bias) if which == 0 else (votes, x)
            return np.sum(weight * differentiated(*args, iterations, gradient))

        return reference.derivative(f, (votes, bias)[which], direction)

    for _ in range(4):
        direction = rng.normal(size=votes.shape)
        got = np.sum(dvotes * direction)
        np.testing.assert_allclose(got, along(direction, 0), rtol=1e-9, atol=1e-11)
        direction = rng.normal(size=bias.shape)
        got = np.sum(dbias * direction)
        np.testing.assert_allclose(got, along(direction, 1), rtol=1e-9, atol=1e-11)


def test_forward_derivative_of_activation_and_coupling(x64):
    votes, bias = data(*SHAPES[0])
    direction = np.random.default_rng(1).normal(size=votes.shape)
    out = jax.jit(lambda x, d: jax.jvp(lambda x: dynamic_routing(x, bias=bias), (x,), (d,))[1])(
        votes, direction
    )
    for got, field in [(out.pose, "v"), (out.activation, "lengths"), (out.coupling, "c")]:

        def exact(x, field=field):
            return getattr(reference.routing(x, 3, bias), field)

        expected = reference.derivative(exact, votes, direction)
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)
        # And the complex step against a plain central difference.
        rough = reference.difference(exact, votes, direction)
        np.testing.assert_allclose(rough, expected, rtol=1e-6, atol=1e-8)


def test_check_grads(x64):
    votes, bias = data(4, 2, 3)
    route = jax.jit(lambda votes, bias: dynamic_routing(votes, bias=bias).pose)
    check_grads(route, (votes, bias), order=1, modes=["rev"], rtol=1e-6)


def test_modes_have_one_value_and_three_gradients():
    votes, bias = single(*SHAPES[0])
    out = {mode: jitted_gradient(3, mode)(votes, bias, np.ones_like(bias)) for mode in GRADIENTS}
    for a, b in [("full", "stop"), ("full", "last"), ("stop", "last")]:
        np.testing.assert_allclose(out[a][1], out[b][1], rtol=1e-5, atol=1e-6)
        assert abs(np.asarray(out[a][0][0]) - np.asarray(out[b][0][0])).max() > 0.01


def test_float32_is_close():
    votes, bias = single(*SHAPES[0])
    exact = reference.routing(votes.astype(np.float64), 3, bias.astype(np.float64))
    out = jitted()(votes, bias)
    assert all(x.dtype == np.float32 for x in out[:3])
    np.testing.assert_allclose(out.pose, exact.v, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out.coupling, exact.c, rtol=1e-5, atol=1e-6)


def test_huge_and_zero_votes():
    votes, bias = single(*SHAPES[0])
    weight = np.ones_like(bias)
    out = jitted(4)(1e4 * votes, bias)
    assert all(np.isfinite(x).all() for x in out[:3]) and out.activation.max() < 1
    (dvotes, _), _ = jitted_gradient(3, "full")(1e4 * votes, bias, weight)
    assert np.isfinite(dvotes).all()
    out = jitted()(0 * votes, 0 * bias)
    np.testing.assert_array_equal(out.pose, 0)
    np.testing.assert_allclose(out.coupling, 1 / 3, rtol=1e-6)
    for gradient in jitted_gradient(3, "full")(0 * votes, 0 * bias, weight)[0]:
        np.testing.assert_array_equal(gradient, 0)


def test_eager_jit_vmap_and_the_defaults_agree():
    batch = np.stack([single(*SHAPES[0], seed=seed)[0] for seed in range(3)])
    compiled = [jitted(3, "full")(votes) for votes in batch]
    mapped = jax.jit(jax.vmap(dynamic_routing))(batch)
    for n in range(3):
        eager = dynamic_routing(batch[n])
        for exact, a, b in zip(compiled[n][:3], eager[:3], mapped[:3], strict=True):
            np.testing.assert_allclose(a, exact, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(b[n], exact, rtol=1e-5, atol=1e-6)


def test_the_default_gradient_is_full():
    votes, _ = single(*SHAPES[0])
    weight = np.random.default_rng(0).normal(size=votes.shape[1:]).astype(np.float32)
    default = jax.jit(jax.grad(lambda x: jnp.sum(weight * dynamic_routing(x).pose)))(votes)
    (full, _), _ = jitted_gradient(3, "full")(votes, 0 * weight, weight)
    np.testing.assert_allclose(default, full, rtol=1e-4, atol=1e-6)


def test_errors():
    votes = jnp.zeros((4, 3, 2))
    for iterations in (0, -1):
        with pytest.raises(ValueError, match="iterations must be 1 or more"):
            dynamic_routing(votes, iterations)
    with pytest.raises(ValueError, match="full, stop, last.*'none'"):
        dynamic_routing(votes, gradient="none")
    with pytest.raises(AssertionError):
        dynamic_routing(np.zeros((3, 2)))
    for shape in [(2, 3), (3,), (4, 3, 2)]:
        with pytest.raises(AssertionError):
            dynamic_routing(votes, bias=np.zeros(shape))


# Bugs that other implementations have. Each test also shows that it could fail: that the
# bug changes the result on its data by much more than the tolerance.


def test_bug_softmax_over_the_input_capsules():
    votes, _ = data(*SHAPES[0])
    out = jitted()(votes.astype(np.float32))
    np.testing.assert_allclose(out.coupling.sum(axis=1), 1, rtol=1e-6)
    wrong = reference.routing(votes, 3, coupling=lambda b: reference.over_parents(b.T).T)
    assert abs(out.pose - wrong.v).max() > 0.1
    assert abs(out.coupling.sum(axis=0) - 1).max() > 0.1


def test_bug_logits_shared_by_the_batch():
    """Averaging the logits over the batch makes an image depend on its neighbours."""
    batch = np.stack([single(*SHAPES[0], seed=seed)[0] for seed in range(4)])
    route = jax.jit(jax.vmap(dynamic_routing))
    together = np.asarray(route(batch).pose[0])
    np.testing.assert_allclose(route(batch[:1]).pose[0], together, rtol=1e-5, atol=1e-6)
    others = batch * np.array([1, -3, 0, 5], np.float32)[:, None, None, None]
    np.testing.assert_allclose(route(others).pose[0], together, rtol=1e-5, atol=1e-6)

    b = np.zeros((6, 3))
    for _ in range(3):
        c = reference.over_parents(b)
        wrong = [reference.routing_constant_coupling(votes, c) for votes in batch]
        b = b + np.mean([reference.agreement(*pair) for pair in zip(batch, wrong)], axis=0)
    assert abs(wrong[0] - together).max() > 0.05


def test_bug_wrong_number_of_iterations():
    """r = 3 computes s_j three times: not two, and not once before three more."""
    votes, _ = data(*SHAPES[0])
    exact = {r: reference.routing(votes, r).v for r in (2, 3, 4)}
    pose = jitted(3)(votes.astype(np.float32)).pose
    np.testing.assert_allclose(pose, exact[3], rtol=1e-4, atol=1e-6)
    assert abs(pose - exact[2]).max() > 0.02 and abs(pose - exact[4]).max() > 0.02
    np.testing.assert_allclose(jitted(1)(votes.astype(np.float32)).coupling, 1 / 3, rtol=1e-6)


def test_bug_logits_updated_without_the_outputs():
    """One peer adds sum_d(c votes) to the logits: no agreement with v_j at all."""
    votes, _ = data(*SHAPES[0])
    b = np.zeros((6, 3))
    for _ in range(3):
        c = reference.over_parents(b)
        wrong = reference.routing_constant_coupling(votes, c)
        b = b + np.sum(c[:, :, None] * votes, axis=2)
    assert abs(wrong - jitted()(votes.astype(np.float32)).pose).max() > 0.05


def test_agreeing_children_go_to_their_parent():
    """What routing is for: the parent whose votes agree wins the children."""
    rng = np.random.default_rng(0)
    votes = rng.normal(size=(8, 2, 4)).astype(np.float32)
    votes[:, 0] = [1, 2, -1, 0.5] + 0.1 * rng.normal(size=(8, 4))
    out = jitted()(votes)
    assert out.coupling[:, 0].min() > 0.9
    assert out.activation[0] > 0.9 > out.activation[1]
