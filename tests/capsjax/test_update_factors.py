"""Factors of updates: frozen parameters keep their bits, others have multiples of their updates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from capsjax import OPTIMIZERS, make_optimizer, scale_updates
from capsjax.update_factors import paths_of

PARAMS = {"a": {"w": jnp.array([1.5, -0.0, 0.0, 1e-40])}, "b": {"w": jnp.array([0.3, -2.0])}}
GRADIENTS = {"a": {"w": jnp.array([3.0, -4.0, 1.0, 1.0])}, "b": {"w": jnp.array([0.25, 0.5])}}


def factor(path):
    return {"a.w": 0.0, "b.w": 0.3}[path]


def steps(optimizer, params=PARAMS, gradients=GRADIENTS, count=3):
    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, updates

    state = optimizer.init(params)
    for _ in range(count):
        params, state, updates = step(params, state)
    return params, updates


def test_paths():
    assert paths_of(PARAMS) == ["a.w", "b.w"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_parameters_keep_their_bits(name):
    optimizer = make_optimizer(name, lambda _: 0.1, weight_decay=0.1, clip_norm=0.5)
    with jax.numpy_dtype_promotion("standard"):  # which radam needs
        params, _ = steps(scale_updates(optimizer, factor))
    bits = [np.asarray(p["a"]["w"]).view(np.int32) for p in (params, PARAMS)]
    np.testing.assert_array_equal(*bits)
    assert not np.array_equal(params["b"]["w"], PARAMS["b"]["w"])


def test_a_factor_multiplies_the_update_of_sgd_exactly():
    whole, scaled = (
        steps(scale_updates(optax.sgd(0.1), f))[1]["b"]["w"] for f in (lambda p: 1.0, factor)
    )
    np.testing.assert_array_equal(scaled, np.float32(0.3) * np.asarray(whole))


def test_frozen_gradients_do_not_count_in_the_norm():
    optimizer = scale_updates(make_optimizer("sgd", lambda _: 1.0, clip_norm=0.1), factor)
    _, updates = steps(optimizer, count=1)
    g = np.float64(GRADIENTS["b"]["w"])
    np.testing.assert_allclose(updates["b"]["w"], -0.3 * 0.1 * g / np.linalg.norm(g), rtol=1e-6)


def test_a_frozen_negative_zero_keeps_its_sign_outside_of_jit():
    optimizer = scale_updates(optax.sgd(0.1), factor)
    updates, _ = optimizer.update(GRADIENTS, optimizer.init(PARAMS), PARAMS)
    found = optax.apply_updates(PARAMS, updates)["a"]["w"]
    np.testing.assert_array_equal(np.signbit(found), [False, True, False, False])
