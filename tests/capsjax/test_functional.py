"""Modules as pairs of pure functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import filled
from small_networks import KEY, TINY, built, images

from capsjax import (
    CNN,
    CapsNet,
    Decoder,
    Model,
    count_parameters,
    create_model,
    from_module,
    preset,
)


def test_from_module_equals_the_module():
    key = jax.random.key(5)
    module = nnx.Linear(3, 2, rngs=nnx.Rngs(key))
    model = from_module(lambda rngs: nnx.Linear(3, 2, rngs=rngs))
    assert isinstance(model, Model)
    params = model.init(key)
    assert type(params) is dict and params.keys() == {"kernel", "bias"}
    np.testing.assert_array_equal(params["kernel"], module.kernel[...])
    x = np.ones((4, 3), np.float32)
    np.testing.assert_array_equal(model.apply(params, x), module(x))
    # A function of its argument, not of parameters that it has seen.
    np.testing.assert_array_equal(model.apply(jax.tree.map(np.zeros_like, params), x), 0)
    np.testing.assert_array_equal(model.apply(params, x), module(x))


def test_create_model_is_from_module_of_the_network():
    for config, network in [(TINY, CapsNet), (preset("cnn_tiny"), CNN)]:
        made = create_model(config), from_module(lambda rngs, n=network, c=config: n(c, rngs=rngs))
        one, two = (jax.eval_shape(model.init, KEY) for model in made)
        assert one == two


def test_vmap_over_seeds():
    model = from_module(lambda rngs: Decoder(2, (), (1, 2, 1), rngs=rngs))
    keys = jax.random.split(KEY, 2)
    many = jax.jit(jax.vmap(model.init))(keys)
    kernels = np.asarray(many["layers"][0]["kernel"])
    assert abs(kernels[0] - kernels[1]).max() > 0.1
    for n in range(2):
        for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(model.init(keys[n])), strict=True):
            np.testing.assert_allclose(a[n], b, rtol=1e-6)

    _, _, apply = built()
    model = create_model(TINY)
    networks = [filled(model, seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *networks)
    out = jax.jit(jax.vmap(model.apply, (0, None)))(stacked, images())
    for n in range(2):
        for a, b in zip(out, apply(networks[n], images()), strict=True):
            np.testing.assert_allclose(a[n], b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda rngs: nnx.BatchNorm(3, rngs=rngs), "BatchStat"),
        (lambda rngs: nnx.Dropout(0.5, rngs=rngs), "Rng"),
    ],
    ids=["BatchNorm", "Dropout"],
)
def test_from_module_rejects_other_variables(make, name):
    with pytest.raises(TypeError, match=f"only nnx.Param .*{name}"):
        from_module(make)


def test_count_parameters():
    shapes = jax.eval_shape(lambda: {"a": jnp.zeros((3, 4)), "b": [jnp.zeros(5), jnp.zeros(())]})
    assert count_parameters(shapes) == 18
    assert count_parameters({}) == 0
