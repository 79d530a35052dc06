"""Layers without capsules, apart from the convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capsjax.plain_layers import max_pool


def pool_by_loops(x, dy):
    """Pool in loops over windows; the first of equal pixels gets the gradient."""
    B, H, W, C = x.shape
    y, dx = np.zeros((B, H // 2, W // 2, C), x.dtype), np.zeros_like(x)
    for b, h, w, c in np.ndindex(y.shape):
        window = x[b, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2, c]
        i, j = np.unravel_index(window.argmax(), (2, 2))
        y[b, h, w, c] = window[i, j]
        dx[b, 2 * h + i, 2 * w + j, c] = dy[b, h, w, c]
    return y, dx


@pytest.mark.parametrize("shape", [(2, 6, 4, 3), (3, 5, 7, 2), (1, 2, 2, 1)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_max_pool_equals_loops(shape, dtype):
    rng = np.random.default_rng(0)
    # Few different values, so that most windows have their maximum more than once.
    x = rng.integers(-2, 3, shape).astype(dtype)
    dy = rng.normal(size=(shape[0], shape[1] // 2, shape[2] // 2, shape[3])).astype(dtype)
    y, gradient = jax.vjp(max_pool, jnp.asarray(x))
    exact, dx = pool_by_loops(x, dy)
    np.testing.assert_array_equal(y, exact)
    np.testing.assert_array_equal(gradient(jnp.asarray(dy))[0], dx)


@pytest.mark.parametrize("pixel", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_max_pool_keeps_nan(pixel):
    x = np.zeros((1, 4, 2, 1), np.float32)
    x[0, pixel[0], pixel[1], 0] = np.nan
    np.testing.assert_array_equal(max_pool(x)[0, :, 0, 0], [np.nan, 0])
