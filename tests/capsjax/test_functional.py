"""Modules as pairs of pure functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import filled
from small_networks import KEY, TINY, built, images
from small_networks import create_model as create_model_without_factor

from capsjax import (
    CNN,
    BatchNorm,
    CapsNet,
    Decoder,
    Model,
    Variables,
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
    kernels = np.asarray(many["layers"]["0"]["kernel"])
    assert abs(kernels[0] - kernels[1]).max() > 0.1
    for n in range(2):
        for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(model.init(keys[n])), strict=True):
            np.testing.assert_allclose(a[n], b, rtol=1e-6)

    _, _, apply = built()
    model = create_model_without_factor(TINY)
    networks = [filled(model, seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *networks)
    out = jax.jit(jax.vmap(model.apply, (0, None)))(stacked, images())
    for n in range(2):
        for a, b in zip(out, apply(networks[n], images()), strict=True):
            np.testing.assert_allclose(a[n], b, rtol=1e-4, atol=1e-6)


class Counting(nnx.Module):
    """A statistic in a list, a parameter, and a second method."""

    def __init__(self, rngs):
        self.layers = nnx.List([BatchNorm(2, momentum=0.5)])
        self.last = nnx.Linear(2, 1, rngs=rngs)

    def __call__(self, x):
        return self.last(self.layers[0](x))

    def first(self, x):
        return self.layers[0](x)


def test_network_with_statistics():
    model = from_module(Counting)
    assert model.has_state and not create_model(TINY).has_state
    params, state = variables = model.init(KEY)
    assert isinstance(variables, Variables)
    assert params["layers"]["0"].keys() == {"scale", "bias"}
    assert jax.tree.map(np.shape, state) == {"layers": {"0": {"mean": (2,), "var": (2,)}}}
    assert count_parameters(variables) == 4 + 3

    x = np.array([[1.0, 2.0], [3.0, -2.0]], np.float32)
    y, after = model.apply(variables, x, method="first", train=True)
    np.testing.assert_allclose(y, [[-1, 1], [1, -1]], atol=1e-3)
    np.testing.assert_allclose(after["layers"]["0"]["mean"], [1, 0])
    np.testing.assert_array_equal(state["layers"]["0"]["mean"], 0)  # nothing is changed in place
    y = model.apply(Variables(params, after), x, method="first")
    exact = (x - [1, 0]) / np.sqrt([1.5, 4.5])  # half of 1 and of the unbiased 2 and 8
    np.testing.assert_allclose(y, exact, rtol=1e-3)
    np.testing.assert_array_equal(model.apply(Variables(params, after), x, method="first"), y)


def test_networks_without_statistics_have_an_empty_state():
    model = from_module(lambda rngs: nnx.Linear(3, 2, rngs=rngs))
    params, x = model.init(KEY), np.ones((1, 3), np.float32)
    y, state = model.apply(params, x, train=True)
    assert state == ()
    np.testing.assert_array_equal(y, model.apply(Variables(params, ()), x))


def test_wrong_variables_are_refused():
    x = np.ones((1, 3), np.float32)
    linear = from_module(lambda rngs: nnx.Linear(3, 2, rngs=rngs))
    norm = from_module(lambda rngs: BatchNorm(3))
    params, state = norm.init(KEY)
    with pytest.raises(TypeError, match=r"are Variables\(params, state\)"):
        norm.apply(params, x)
    with pytest.raises(TypeError, match="are parameters alone"):
        linear.apply(Variables(linear.init(KEY), state), x)


def test_variables_of_another_network_are_refused():
    model, other = (
        from_module(lambda rngs, n=n: nnx.Sequential(nnx.Linear(3, n, rngs=rngs), nnx.relu))
        for n in (2, 4)
    )
    x = np.ones((1, 3), np.float32)
    message = r"layers/0/bias of these variables has the shape \[4\], .* this network \[2\]"
    with pytest.raises(ValueError, match=message):
        model.apply(other.init(jax.random.key(0)), x)
    sizes = (from_module(lambda rngs, n=n: nnx.BatchNorm(n, rngs=rngs)) for n in (3, 1))
    wide, narrow = (model.init(jax.random.key(0)) for model in sizes)
    with pytest.raises(ValueError, match=r"mean .* \[1\], .* \[3\]"):
        from_module(lambda rngs: nnx.BatchNorm(3, rngs=rngs)).apply(
            Variables(wide.params, narrow.state), x
        )


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda p: {"kernel": p["kernel"]}, "bias is missing"),
        (lambda p: p | {"scale": p["bias"]}, "scale of these variables is not one of"),
        (lambda p: p | {"bias": {"0": p["bias"]}}, "bias is missing"),
        (lambda p: {"layers": {"0": p}}, "bias is missing"),
        (lambda p: p | {"kernel": p["kernel"].tolist()}, "kernel is missing"),
    ],
)
def test_variables_with_other_names_are_refused(change, message):
    model = from_module(lambda rngs: nnx.Linear(3, 2, rngs=rngs))
    with pytest.raises(ValueError, match=message):
        model.apply(change(model.init(KEY)), np.ones((1, 3), np.float32))


def test_from_module_rejects_other_variables():
    with pytest.raises(TypeError, match="only nnx.Param and nnx.BatchStat .*Rng"):
        from_module(lambda rngs: nnx.Dropout(0.5, rngs=rngs))


def test_count_parameters():
    shapes = jax.eval_shape(lambda: {"a": jnp.zeros((3, 4)), "b": [jnp.zeros(5), jnp.zeros(())]})
    assert count_parameters(shapes) == 18
    assert count_parameters({}) == 0


def test_a_network_is_made_from_a_configuration():
    with pytest.raises(TypeError, match="as of preset.name., not 'capsnet_mnist'"):
        create_model("capsnet_mnist")
    with pytest.raises(ValueError, match="num_classes must be 1 or more"):
        preset("capsnet_tiny", num_classes=0)
    with pytest.raises(ValueError, match="needs the channels of its layers"):
        preset("capsnet_tiny", decoder=(), decoder_kind="transposed")
