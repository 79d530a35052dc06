"""Arrays that are materialized: values, gradients, batching and layouts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capsjax import backend
from capsjax.backend import materialize

x = np.random.default_rng(0).normal(size=(6, 3, 5)).astype(np.float32)


def turned(x):
    return jnp.transpose(x, (2, 0, 1)) + 1


@pytest.mark.parametrize("wrap", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_values_and_gradients_are_unchanged(wrap):
    def function(x):
        a, b = materialize((turned(x), x.T))
        return jnp.sum(a * materialize(a)) + jnp.sum(jnp.sin(b))

    exact = np.sum((x + 1.0) ** 2) + np.sum(np.sin(x))
    value, gradient = wrap(jax.value_and_grad(function))(x)
    np.testing.assert_allclose(value, exact, rtol=1e-5)
    np.testing.assert_allclose(gradient, 2 * (x + 1) + np.cos(x), rtol=1e-5)
    np.testing.assert_array_equal(wrap(lambda x: materialize({"a": x}))(x)["a"], x)


def test_mapped_over_any_axis():
    for axis in range(3):
        mapped = jax.vmap(lambda x: materialize(x.T) * 2, in_axes=axis, out_axes=axis)
        exact = 2 * np.moveaxis(np.moveaxis(x, axis, 0).swapaxes(1, 2), 0, axis)
        np.testing.assert_array_equal(jax.jit(mapped)(x), exact)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (materialize(x * 2), turned(x)),
        lambda x: (materialize(turned(x)), turned(x)),
        lambda x: (jax.grad(lambda y: jnp.sum(materialize(y) ** 3))(x), turned(x)),
        lambda x: (backend._in_order.fun(x * 2), turned(x)),
    ],
    ids=["result", "turned", "gradient", "inlined"],
)
def test_results_have_the_default_layout(function):
    """JAX 0.10 would change the layout of other arrays too, and compute wrong values with it."""
    formats = jax.jit(function).lower(x).compile().output_formats
    for format in formats:
        assert format.layout.major_to_minor == (0, 1, 2)


def test_materialize_does_nothing_on_gpu(monkeypatch):
    def names():
        return {e.primitive.name for e in jax.make_jaxpr(lambda x: materialize(x * 2))(x).eqns}

    assert names() != {"mul"}
    monkeypatch.setattr("capsjax.backend.backend", lambda: "gpu")
    assert names() == {"mul"}
