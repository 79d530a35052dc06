"""Batch and instance normalization against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import as_float64, compiled, filled

from capsjax import BatchNorm, InstanceNorm, Variables, from_module
from capsjax.normalization import ExampleNorm, GroupNorm

SHAPE = (6, 4, 3, 2)


def draw(seed=0, shape=SHAPE):
    """Returns numbers far from zero, which a difference of squares would not survive."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) * [1.0, 3.0] + [100.0, -2.0]).astype(np.float32)


def batch_norm(**options):
    return from_module(lambda rngs: BatchNorm(2, **options))


def normalized(x, params, mean, var, epsilon):
    return (x - mean) / np.sqrt(var + epsilon) * params["scale"] + params["bias"]


@pytest.mark.parametrize(
    "options, momentum, epsilon",
    [({}, 0.99, 1e-3), ({"momentum": 0.9, "epsilon": 1e-5}, 0.9, 1e-5)],
    ids=["Keras", "PyTorch"],
)
def test_batch_norm_equals_numpy(options, momentum, epsilon):
    model = batch_norm(**options)
    params, state = model.init(jax.random.key(0))
    np.testing.assert_array_equal(state["mean"], 0)
    np.testing.assert_array_equal(state["var"], 1)
    params = filled(model).params
    mean, var = np.zeros(2), np.ones(2)
    train = jax.jit(lambda *variables, x: model.apply(Variables(*variables), x, train=True))
    for seed in range(3):
        x = draw(seed)
        y, state = train(params, state, x=x)
        exact = x.astype(np.float64).reshape(-1, 2)
        n = len(exact)
        m = exact.sum(0) / n
        v = ((exact - m) ** 2).sum(0) / n
        np.testing.assert_allclose(y, normalized(x, params, m, v, epsilon), atol=1e-4)
        mean = momentum * mean + (1 - momentum) * m
        var = momentum * var + (1 - momentum) * v * n / (n - 1)
        np.testing.assert_allclose(state["mean"], mean, rtol=1e-5)
        np.testing.assert_allclose(state["var"], var, rtol=1e-5)
    x = draw(9)
    y = jax.jit(model.apply)(Variables(params, state), x)
    np.testing.assert_allclose(y, normalized(x, params, mean, var, epsilon), rtol=1e-5, atol=1e-4)


# Bug: scale and variance were one array, so that a state could not be donated to a jitted step.
def test_variables_of_batch_norm_have_memory_of_their_own():
    arrays = jax.tree.leaves(batch_norm().init(jax.random.key(0)))
    assert len(arrays) == 4
    assert len({x.unsafe_buffer_pointer() for x in arrays}) == 4


def test_batch_norm_of_a_constant_batch():
    model = batch_norm(momentum=0.5)
    params, state = model.init(jax.random.key(0))
    y, state = model.apply(Variables(params, state), jnp.full((1, 2), 3.0), train=True)
    np.testing.assert_array_equal(y, 0)
    np.testing.assert_array_equal(state["mean"], 1.5)
    np.testing.assert_array_equal(state["var"], 0.5)  # not infinite, although N - 1 is zero


def test_gradient_of_batch_norm_flows_through_the_statistics(x64):
    """Compares derivatives along a direction with differences of the formula in NumPy."""
    model = batch_norm()
    params, state = as_float64(filled(model))
    x, weights = draw().astype(np.float64), np.random.default_rng(1).normal(size=SHAPE)
    direction = np.random.default_rng(2).normal(size=SHAPE)

    def loss(x):
        y, _ = model.apply(Variables(params, state), x, train=True)
        return jnp.sum(weights * y)

    def exact(t):
        moved = x + t * direction
        mean, var = moved.mean((0, 1, 2)), moved.var((0, 1, 2))
        return np.sum(weights * normalized(moved, params, mean, var, 1e-3))

    h = 1e-4
    want = (exact(h) - exact(-h)) / (2 * h)
    got = np.sum(direction * compiled(jax.grad(loss), x)(x))
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_statistics_stay_float32_for_bfloat16():
    model = batch_norm()
    variables = model.init(jax.random.key(0))
    y, state = model.apply(variables, draw().astype(jnp.bfloat16), train=True)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {np.dtype("float32")}
    exact = draw().astype(jnp.bfloat16).astype(np.float64).mean((0, 1, 2)) / 100
    np.testing.assert_allclose(state["mean"], exact, rtol=1e-5)


def test_instance_norm_equals_numpy():
    def init(low):
        return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, low, low + 1)

    model = from_module(
        lambda rngs: InstanceNorm(2, scale_init=init(2.0), bias_init=init(5.0), rngs=rngs)
    )
    assert not model.has_state
    params = model.init(jax.random.key(0))
    assert (2 <= params["scale"]).all() and (params["bias"] >= 5).all()
    x = draw()
    y = jax.jit(model.apply)(params, x)
    for n, c in np.ndindex(SHAPE[0], 2):
        one = x[n, :, :, c].astype(np.float64)
        exact = (one - one.mean()) / np.sqrt(one.var() + 1e-3)
        exact = exact * params["scale"][c] + params["bias"][c]
        np.testing.assert_allclose(y[n, :, :, c], exact, atol=2e-4)
    default = from_module(lambda rngs: InstanceNorm(2, rngs=rngs)).init(jax.random.key(0))
    np.testing.assert_array_equal(default["scale"], 1)
    np.testing.assert_array_equal(default["bias"], 0)


def test_layer_normalization_is_over_a_whole_example():
    model = from_module(lambda rngs: ExampleNorm(2, epsilon=1e-2, rngs=rngs))
    params = {"scale": np.float32([2, 3]), "bias": np.float32([-1, 5])}
    x = draw()
    y = jax.jit(model.apply)(params, x)
    for one, got in zip(x.astype(np.float64), y, strict=True):
        exact = normalized(one, params, one.mean(), one.var(), 1e-2)
        np.testing.assert_allclose(got, exact, atol=2e-4)


def test_a_module_of_flax_learns_of_training_and_axis():
    model = from_module(lambda rngs: nnx.BatchNorm(2, momentum=0.9, rngs=rngs))
    variables = model.init(jax.random.key(0))
    x = draw() - np.float32([100, 0])  # Flax takes a difference of squares
    with jax.numpy_dtype_promotion("standard"):
        want, state = model.apply(variables, x, train=True)
        parts = x.reshape(2, 3, *SHAPE[1:])
        got, states = jax.vmap(
            lambda x: model.apply(variables, x, train=True, axis_name="data"), axis_name="data"
        )(parts)
    np.testing.assert_allclose(got.reshape(SHAPE), want, atol=1e-3)
    for whole, each in zip(jax.tree.leaves(state), jax.tree.leaves(states), strict=True):
        np.testing.assert_allclose(each, np.stack([whole] * 2), rtol=1e-3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: BatchNorm(4),
        lambda: BatchNorm(4, scale=False, offset=False),
        lambda: InstanceNorm(4, rngs=nnx.Rngs(0)),
        lambda: ExampleNorm(4, rngs=nnx.Rngs(0)),
        lambda: GroupNorm(4, groups=2),
    ],
)
@pytest.mark.parametrize("channels", [1, 2, 8])
def test_other_numbers_of_channels_are_refused(make, channels):
    with pytest.raises(AssertionError, match=str(channels)):
        make()(jnp.ones((2, 3, 3, channels)))
