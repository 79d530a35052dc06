"""Dynamic routing with a softmax over the input capsules, as in some public code."""

import jax
import numpy as np
import pytest

from capsjax import CapsNetConfig, preset
from capsjax.routing import dynamic, make_routing, route, tiles

B, I, J, D, K = 2, 20, 3, 4, 5


def loops(u, W, prior, iterations):
    """The passes in NumPy, with the softmax along the axis of the input capsules."""
    votes, found = np.einsum("bik,ijdk->bijd", u, W), []
    for x in votes:
        b = prior.copy()
        for n in range(iterations):
            c = np.exp(b - b.max(0))
            s = np.einsum("ij,ijd->jd", c / c.sum(0), x)
            square = (s**2).sum(-1, keepdims=True)
            v = square / (1 + square) * s / np.sqrt(square)
            if n + 1 < iterations:
                b = b + np.einsum("ijd,jd->ij", x, v)
        found.append(v)
    return np.stack(found)


def test_values_and_gradients_with_and_without_votes(x64, monkeypatch):
    monkeypatch.setattr(tiles, "TILE_BYTES", 4 * B * J * D * 8)  # 8 capsules, and a last tile of 4
    rng = np.random.default_rng(0)
    u, W = rng.normal(size=(B, I, K)), rng.normal(size=(I, J, D, K))
    prior, weights = rng.normal(size=(I, J)), rng.normal(size=(B, J, D))
    routing = dynamic(3, prior="learned", over="inputs")

    def loss(prior, W, implementation):
        out = route(routing, {"prior": prior}, u, W, implementation=implementation)
        return (out.pose * weights).sum(), out.pose

    gradient = jax.jit(jax.grad(loss, (0, 1), has_aux=True), static_argnums=2)
    naive, stream = (gradient(prior, W, how) for how in ("naive", "stream"))
    exact = loops(u, W, prior, 3)
    for (dprior, dW), pose in (naive, stream):
        np.testing.assert_allclose(pose, exact, atol=1e-12)
        np.testing.assert_allclose(dprior, naive[0][0], atol=1e-12)
        np.testing.assert_allclose(dW, naive[0][1], atol=1e-12)
    step = 1e-6 * rng.normal(size=prior.shape)
    ends = ((loops(u, W, prior + sign * step, 3) * weights).sum() for sign in (1, -1))
    change = (next(ends) - next(ends)) / 2
    np.testing.assert_allclose((naive[0][0] * step).sum(), change, rtol=1e-6)


@pytest.mark.parametrize("size", [1.0, 1e4, 1e12])
def test_long_votes_have_finite_outputs_and_gradients(size):
    rng = np.random.default_rng(0)
    u, W = np.float32(size * rng.normal(size=(B, I, K))), np.float32(rng.normal(size=(I, J, D, K)))

    def total(u):
        return route(dynamic(3, over="inputs"), {}, u, W).pose.sum()

    value, gradient = jax.value_and_grad(total)(u)
    assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize("largest", [10.0, 30.0, 45.0])
def test_gradients_of_large_logits_equal_float64(largest, x64):
    """Squares of sums of exponentials overflow in float32, and their inverses vanish."""
    u, W = np.ones((1, 3, 1)), np.array([[[1.0], [0.0]], [[0.0], [1.0]], [[1.0], [1.0]]])[:, None]
    prior = np.array([[largest], [largest + 0.3], [0.0]])
    routing = dynamic(1, prior="learned", over="inputs")

    def gradient(kind):
        arrays = [array.astype(kind) for array in (prior, u, W)]
        return jax.grad(lambda p, u, W: route(routing, {"prior": p}, u, W).pose[0, 0, 0])(*arrays)

    np.testing.assert_allclose(gradient(np.float32), gradient(np.float64), rtol=1e-4, atol=1e-7)


def test_other_normalizers_and_capsules_without_places_are_refused():
    with pytest.raises(ValueError, match="softmax, not leaky"):
        make_routing("leaky", over="inputs")
    with pytest.raises(ValueError, match="over must be one of outputs, inputs"):
        CapsNetConfig(routing_over="capsules")
    with pytest.raises(ValueError, match="neither types nor places"):
        preset("capsnet_deep", primary_grouping="positions")
