"""Convolutions and the decoder as modules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx
from helpers import as_float64, filled

from capsjax import (
    Conv,
    Decoder,
    from_module,
)


def test_decoder_equals_reference():
    model = from_module(lambda rngs: Decoder(6, (5, 4), (2, 3, 1), rngs=rngs))
    params = filled(model)
    pose = np.array([[[0, 0, 0], [1, -2, 3]]], np.float32)
    exact = reference.decode(as_float64(params), pose[0].astype(float), 1, (2, 3, 1))
    np.testing.assert_allclose(jax.jit(model.apply)(params, pose)[0], exact, rtol=1e-5)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 4, 5, 9])
def test_same_padding(kernel, stride):
    conv = Conv(2, 3, kernel, stride=stride, padding="SAME", rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(2, 6, 7, 2)).astype(np.float32)
    exact = jax.lax.conv_general_dilated(
        x, conv.kernel[...], (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert conv(x).shape == (2, -(-6 // stride), -(-7 // stride), 3)
    np.testing.assert_allclose(conv(x), exact, rtol=1e-5, atol=1e-5)


def test_conv_module_is_scale_times_convolution_plus_bias():
    conv = Conv(
        2, 3, 3, stride=2, scale=0.25, bias_init=jax.nn.initializers.normal(1), rngs=nnx.Rngs(0)
    )
    x = np.random.default_rng(0).normal(size=(1, 8, 7, 2)).astype(np.float32)
    kernel, bias = np.asarray(conv.kernel[...]), np.asarray(conv.bias[...])
    exact = 0.25 * reference.convolution(x[0], kernel, 2) + bias
    np.testing.assert_allclose(conv(x)[0], exact, rtol=1e-5, atol=1e-5)


def test_bias_gradient_in_bfloat16_is_a_float32_sum():
    """A sum of ones in bfloat16 stops at 256; this one has 3,000 terms."""
    x = np.random.default_rng(0).uniform(size=(30, 10, 10, 1)).astype(np.float32)

    def gradient(dtype):
        model = from_module(lambda rngs: Conv(1, 2, 1, dtype=dtype, rngs=rngs))
        params = {"kernel": np.ones((1, 1, 1, 2), np.float32), "bias": np.zeros(2, np.float32)}
        return jax.jit(jax.grad(lambda p: model.apply(p, x).astype(jnp.float32).sum()))(params)

    half, full = gradient(jnp.bfloat16), gradient(jnp.float32)
    np.testing.assert_array_equal(full["bias"], 3000)
    np.testing.assert_allclose(half["bias"], full["bias"], rtol=2**-8)
    np.testing.assert_allclose(half["kernel"], full["kernel"], rtol=2**-8)


def test_conv_module_rejects_padding_it_does_not_have():
    with pytest.raises(ValueError, match="padding must be one of VALID, SAME, not 'FULL'"):
        Conv(1, 1, 3, padding="FULL", rngs=nnx.Rngs(0))
