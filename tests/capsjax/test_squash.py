"""squash and its relatives, safe_norm: values at every scale, derivatives, and zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import reference_routing

from capsjax import safe_norm, squash
from capsjax.squash import SQUASHES, layer_norm, squash_by_name

DIMENSIONS = [1, 2, 8, 16]


def vectors(D, scale=1.0, seed=0, n=5):
    return scale * np.random.default_rng(seed).normal(size=(n, D))


@jax.jit
@jax.vmap
def everything(s):
    """Returns values and derivatives of one vector."""
    length, dlength = jax.value_and_grad(safe_norm)(s)
    return length, dlength, squash(s), jax.jacobian(squash)(s)


@pytest.mark.parametrize("D", DIMENSIONS)
def test_float64_values_and_derivatives(x64, D):
    batch = vectors(D, 10.0 ** np.linspace(-3, 3, 13)[:, None], n=13)
    for s, length, dlength, v, jacobian in zip(batch, *everything(batch)):
        np.testing.assert_allclose(length, reference.norm(s), rtol=1e-14)
        np.testing.assert_allclose(dlength, s / reference.norm(s), rtol=1e-12)
        np.testing.assert_allclose(v, reference.squash(s), rtol=1e-10)
        exact = reference.squash_jacobian(s)
        np.testing.assert_allclose(jacobian, exact, atol=1e-10 * abs(exact).max())


@pytest.mark.parametrize("D", DIMENSIONS)
def test_derivatives_of_the_reference_agree_with_each_other(D):
    s, direction = vectors(D, n=2)
    exact = reference.squash_jacobian(s) @ direction
    np.testing.assert_allclose(
        reference.derivative(reference.squash, s, direction), exact, rtol=1e-12
    )
    np.testing.assert_allclose(
        reference.difference(reference.squash, s, direction), exact, rtol=1e-7, atol=1e-9
    )


def test_second_derivatives(x64):
    s, direction = vectors(3, n=2)

    @jax.jit
    def along(s, direction):
        def derivatives(s):
            return jax.jacrev(squash)(s), jax.grad(safe_norm)(s)

        return jax.jvp(derivatives, (s,), (direction,))[1]

    ddsquash, ddnorm = along(s, direction)
    exact = reference.derivative(reference.squash_jacobian, s, direction)
    np.testing.assert_allclose(ddsquash, exact, rtol=1e-10)
    exact = reference.derivative(lambda s: s / reference.norm(s), s, direction)
    np.testing.assert_allclose(ddnorm, exact, rtol=1e-10)


def test_float32_values_and_derivatives_at_many_scales():
    # Outside this range the chain rule passes through n^2 or n^-2 below the smallest float32.
    batch = vectors(4, 10.0 ** np.linspace(-15, 15, 31)[:, None], n=31).astype(np.float32)
    for s, length, dlength, v, jacobian in zip(batch.astype(np.float64), *everything(batch)):
        np.testing.assert_allclose(length, reference.norm(s), rtol=1e-6)
        np.testing.assert_allclose(dlength, s / reference.norm(s), rtol=1e-6)
        np.testing.assert_allclose(v, reference.squash(s), rtol=1e-5)
        exact = reference.squash_jacobian(s)
        np.testing.assert_allclose(jacobian, exact, atol=1e-5 * abs(exact).max())


@pytest.mark.parametrize("n", [1e-10, 1e-3, 0.5, 1.0, 2.0, 1e3])
def test_length_is_n_squared_over_one_plus_n_squared(n):
    v = squash(jnp.array([0.6 * n, 0.0, -0.8 * n], jnp.float32))
    np.testing.assert_allclose(safe_norm(v), n**2 / (1 + n**2), rtol=5e-6)
    np.testing.assert_allclose(v / safe_norm(v), [0.6, 0, -0.8], rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("D", [1, 3, 16, 256])
def test_length_stays_below_one(dtype, D, request):
    if dtype == np.float64:
        request.getfixturevalue("x64")
    limit = 37 if dtype == np.float32 else 307
    scale = 10.0 ** np.linspace(-limit, limit, 500)[:, None] / D
    s = (np.random.default_rng(D).uniform(-1, 1, size=(500, D)) * scale).astype(dtype)
    v = np.asarray(squash(s))
    assert v.dtype == dtype and np.isfinite(v).all()
    # np.longdouble: the length of float64 vectors must not be rounded up to one here.
    lengths = np.sqrt(np.sum(np.square(v.astype(np.longdouble)), axis=1))
    assert lengths.max() < 1
    assert safe_norm(jnp.asarray(v)).max() < 1
    assert lengths[-1] > 1 - 1e-5


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    s = jnp.asarray(vectors(5, 3.0), dtype)
    for function in (squash, safe_norm):
        assert function(s).dtype == jnp.float32
        np.testing.assert_array_equal(function(s), function(s.astype(jnp.float32)))
    assert jnp.isfinite(safe_norm(jnp.full(4, 3e4, dtype)))  # squares overflow float16


# Bug: the derivative of sqrt at zero is infinite, and infinity times zero is NaN.
@pytest.mark.parametrize("D", [1, 16])
def test_zero_has_value_and_gradient_zero(D):
    for result in everything(jnp.zeros((2, D))):
        np.testing.assert_array_equal(result, 0)
    for function in (squash, safe_norm):
        np.testing.assert_array_equal(jax.jit(jax.jacfwd(function))(jnp.zeros(D)), 0)
    assert jnp.isnan(jax.grad(jnp.linalg.norm)(jnp.zeros(D))).all()  # what safe_norm is for


def test_length_of_squash_at_zero_has_gradient_zero():
    gradient = jax.jit(jax.grad(lambda s: safe_norm(squash(s))))
    np.testing.assert_array_equal(gradient(jnp.zeros(4)), 0)


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-38, 1e-30, 1e-20, 1e20, 1e30, 1e37, 1e38, 3e38])
def test_extremes_are_finite(size):
    s = jnp.array([[0.6, -0.8]], jnp.float32) * jnp.float32(size)
    length, dlength, v, jacobian = (x[0] for x in everything(s))
    for x in (length, dlength, v, jacobian):
        assert jnp.isfinite(x).all()
    # Where neither size nor 1 / size is below the smallest normal float32, which CPUs take for 0.
    if 1.2e-38 < size < 8e37:
        np.testing.assert_allclose(length, size, rtol=1e-6)
        np.testing.assert_allclose(dlength, [0.6, -0.8], rtol=1e-6)
    if 1 < size < 8e37:
        np.testing.assert_allclose(v, [0.6, -0.8], rtol=1e-5)


def test_mixed_scales():
    s = jnp.array([[1e30, 1.0], [1e-30, 0.0], [1.0, 1e-30], [0.0, 0.0]], jnp.float32)
    length, dlength, v, jacobian = everything(s)
    np.testing.assert_allclose(length, [1e30, 1e-30, 1, 0], rtol=1e-6)
    np.testing.assert_allclose(dlength, [[1, 1e-30], [1, 0], [1, 1e-30], [0, 0]], rtol=1e-6)
    np.testing.assert_allclose(v[:, 0], [1, 0, 0.5, 0], rtol=1e-5)
    assert jnp.isfinite(jacobian).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_not_hidden(bad):
    s = jnp.array([1.0, bad, 2.0])
    assert not jnp.isfinite(safe_norm(s))
    assert not jnp.isfinite(squash(s)).all()


def test_squash_is_odd_and_keeps_the_direction():
    s = vectors(6, 2.0).astype(np.float32)
    v = np.asarray(squash(s))
    np.testing.assert_array_equal(squash(-s), -v)
    cosine = np.sum(s * v, 1) / np.linalg.norm(s, axis=1) / np.linalg.norm(v, axis=1)
    np.testing.assert_allclose(cosine, 1, rtol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_axis(axis):
    s = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    v, length, kept = jax.jit(
        lambda s: (squash(s, axis), safe_norm(s, axis), safe_norm(s, axis, keepdims=True))
    )(s)
    exact = np.apply_along_axis(reference.norm, axis, s)
    np.testing.assert_allclose(length, exact, rtol=1e-6)
    np.testing.assert_allclose(kept, np.expand_dims(exact, axis), rtol=1e-6)
    np.testing.assert_allclose(v, np.apply_along_axis(reference.squash, axis, s), rtol=1e-5)


@pytest.mark.parametrize("function", [squash, safe_norm])
def test_jit_and_vmap_change_nothing(function):
    s = vectors(7, n=3).astype(np.float32)
    loop = np.stack([function(x) for x in s])
    np.testing.assert_allclose(function(s), loop, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(function)(s), loop, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(function)(s), loop, rtol=1e-6)


# The others, by name


def value_and_jacobian(name):
    function = squash_by_name(name)
    return jax.jit(jax.vmap(lambda s: (function(s), jax.jacobian(function)(s))))


def test_every_squash_has_a_reference():
    assert SQUASHES.keys() == reference_routing.SQUASHES.keys()
    assert squash_by_name("paper") is squash


@pytest.mark.parametrize("name", SQUASHES)
def test_values_and_derivatives_by_name(x64, name):
    exact = reference_routing.SQUASHES[name]
    batch = vectors(3, 10.0 ** np.linspace(-6, 3, 19)[:, None], n=19)
    directions = vectors(3, seed=1, n=19)
    for s, direction, v, jacobian in zip(batch, directions, *value_and_jacobian(name)(batch)):
        np.testing.assert_allclose(v, exact(s), rtol=1e-11)
        derivative = reference.derivative(exact, s, direction)
        np.testing.assert_allclose(
            jacobian @ direction, derivative, rtol=1e-10, atol=1e-10 * abs(derivative).max()
        )


@pytest.mark.parametrize("name", SQUASHES)
def test_float32_by_name_at_many_scales(name):
    exact = reference_routing.SQUASHES[name]
    batch = vectors(4, 10.0 ** np.linspace(-12, 3, 16)[:, None], n=16).astype(np.float32)
    directions = vectors(4, seed=1, n=16)
    result = value_and_jacobian(name)(batch)
    for s, direction, v, jacobian in zip(batch.astype(np.float64), directions, *result):
        np.testing.assert_allclose(v, exact(s), rtol=1e-5)
        derivative = reference.derivative(exact, s, direction)
        np.testing.assert_allclose(
            np.float64(jacobian) @ direction, derivative, atol=1e-5 * abs(direction).max()
        )


# Bug: (1 - exp(-n)) / n is 0 / 0 at zero, and its derivative has an n^-2 that overflows near it.
@pytest.mark.parametrize("name", SQUASHES)
def test_at_zero_and_near_it(name):
    sizes = np.float32([0, 1e-45, 1e-38, 1e-30, 1e-20, 1e-10, 1e-8])
    v, jacobian = value_and_jacobian(name)(np.tile(sizes[:, None], 3))
    assert np.isfinite(v).all() and (np.abs(v) <= sizes[:, None]).all()
    # The gain at zero: one, or nothing.
    exact = np.eye(3) if name in ("exponential", "none") else np.zeros((3, 3))
    np.testing.assert_array_equal(v[0], 0)
    np.testing.assert_array_equal(jacobian[0], exact)
    np.testing.assert_allclose(jacobian, np.tile(exact, (7, 1, 1)), atol=1e-6)


@pytest.mark.parametrize("name", SQUASHES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_not_hidden_by_name(name, bad):
    assert not jnp.isfinite(squash_by_name(name)(jnp.array([1.0, bad, 2.0]))).all()


@pytest.mark.parametrize("name", [name for name in SQUASHES if name != "none"])
@pytest.mark.parametrize("D", [1, 16])
def test_length_by_name_stays_below_one(name, D):
    scale = 10.0 ** np.linspace(-6, 37, 200)[:, None] / D
    s = (np.random.default_rng(D).uniform(-1, 1, size=(200, D)) * scale).astype(np.float32)
    s[-1] = 1e6 / D**0.5  # of length 1e6
    v, jacobian = value_and_jacobian(name)(s)
    lengths = np.sqrt(np.sum(np.square(np.float64(v)), axis=1))
    assert lengths.max() < 1 and safe_norm(v).max() < 1
    assert lengths[-1] > 1 - 1e-5
    assert jnp.isfinite(jacobian).all()


@pytest.mark.parametrize("name", SQUASHES)
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_by_name(name, dtype):
    s = jnp.asarray(vectors(5, 3.0), dtype)
    v = squash_by_name(name)(s)
    assert v.dtype == jnp.float32
    np.testing.assert_array_equal(v, squash_by_name(name)(s.astype(jnp.float32)))


@pytest.mark.parametrize("name", SQUASHES)
def test_axis_by_name(name):
    s = vectors(3, 2.0).astype(np.float32)
    function = squash_by_name(name)
    np.testing.assert_allclose(function(s.T, 0).T, function(s), rtol=1e-6)


@pytest.mark.parametrize(
    "name, n, lengths",
    [
        ("paper", 3.0, [0.9, 0.45, 0.17, 0.027, 7e-4]),
        ("exponential", -np.log(0.1), [0.9, 0.59, 0.45, 0.36, 0.30]),
    ],
)
def test_lengths_of_a_stack(name, n, lengths):
    """Checks the numbers in the documentation, layer by layer."""
    for length in lengths:
        n = float(safe_norm(squash_by_name(name)(jnp.array([0.6 * n, -0.8 * n]))))
        assert abs(n - length) <= 0.05 * length


def test_unknown_name():
    with pytest.raises(ValueError, match="squash must be one of paper, .*, none, not 'papr'"):
        squash_by_name("papr")


@pytest.mark.parametrize("size", [1e-3, 1, 1e6])
def test_layer_norm_of_poses(size):
    """Tsai et al. (2020) normalize primary capsules as torch.nn.LayerNorm does, with 1e-5."""
    s = size * np.random.default_rng(0).normal(size=(3, 5, 8))
    exact = (s - s.mean(-1, keepdims=True)) / np.sqrt(s.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(layer_norm(s.astype(np.float32)), exact, rtol=1e-4, atol=1e-5)
    gradient = jax.grad(lambda s: jnp.sum(layer_norm(s)))(jnp.zeros((2, 4)))
    np.testing.assert_array_equal(gradient, 0)
