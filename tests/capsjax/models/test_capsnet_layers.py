"""Layers made from a configuration: their options and initial parameters."""

import dataclasses
import functools

import jax
import numpy as np
from flax import nnx
from small_networks import DEEP, OFFICIAL, TINY

from capsjax import (
    CapsNet,
    create_model,
    preset,
)


@functools.cache
def initial(**changes):
    """Returns the initial parameters of the tiny preset by name."""
    key = jax.random.key(0, impl="rbg")  # compiles in a tenth of the time of threefry
    params = jax.jit(create_model(preset("capsnet_tiny", **changes)).init)(key)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(x) for p, x in leaves}


def test_iterations_and_gradient_of_the_configuration_reach_the_layer():
    for iterations, gradient in [(1, "full"), (4, "stop"), (2, "last")]:
        config = dataclasses.replace(TINY, routing_iterations=iterations, routing_gradient=gradient)
        layer = nnx.eval_shape(lambda config=config: CapsNet(config, rngs=nnx.Rngs(0))).classes
        assert (layer.routing.passes, layer.options["gradient"]) == (iterations, gradient)


def test_options_of_the_configuration_reach_every_layer():
    changes = {
        "routing_iterations": 4,
        "routing_gradient": "stop",
        "routing_implementation": "naive",
        "routing_prior": "learned",
        "routing_bias": True,
        "layer_votes": "conv",
    }
    config = dataclasses.replace(DEEP, **changes)
    network = nnx.eval_shape(lambda: CapsNet(config, rngs=nnx.Rngs(0)))
    for layer in (*network.layers, network.classes):
        assert (layer.routing.name, layer.routing.passes) == ("dynamic", 4)
        assert layer.options == {"gradient": "stop", "implementation": "naive"}
        assert layer.names == ("prior", "bias")
    assert [layer.votes for layer in network.layers] == ["conv", "conv"]
    assert network.classes.votes == "full"
    assert [layer.grid for layer in network.layers] == [(3, 2), (2, 1)]
    # Options that a routing does not have are not used.
    for name, names in [("kmeans", ()), ("em", ("beta_u", "beta_a")), ("uniform", ("bias",))]:
        layer = nnx.eval_shape(
            lambda name=name: CapsNet(dataclasses.replace(config, routing=name), rngs=nnx.Rngs(0))
        ).classes
        assert layer.routing.name == name and layer.names == names


def test_official_initial_parameters():
    """Kernels are truncated normals (0.05 in the first layer, 0.1 elsewhere), biases 0.1."""
    params = initial(**OFFICIAL)
    assert len(params) == 12
    for name, values in params.items():
        if name.endswith("bias"):
            np.testing.assert_array_equal(values, np.float32(0.1), name)
            continue
        stddev = 0.05 if name == "conv/kernel" else 0.1
        assert np.abs(values).max() <= 2 * stddev, name
        assert np.abs(values).max() > 1.9 * stddev, name
        # A normal cut at two standard deviations has 0.8796 of its standard deviation.
        tolerance = 4 / np.sqrt(values.size)
        assert abs(np.std(values) / stddev - 0.8796) < tolerance, name
        assert abs(np.mean(values) / stddev) < tolerance, name


def test_default_initial_parameters():
    params = initial()
    assert len(params) == 11 and "classes/bias" not in params
    for name, values in params.items():
        if name.endswith("bias"):
            np.testing.assert_array_equal(values, 0, name)
            continue
        fan_in = values.size / values.shape[-1]
        stddev = 0.1 if name == "classes/kernel" else fan_in**-0.5
        assert abs(np.std(values) / stddev - 1) < 4 / np.sqrt(values.size), name


def test_layers_start_from_different_random_numbers():
    params = initial(**OFFICIAL)
    kernels = [v.ravel()[:64] / np.std(v) for n, v in params.items() if n.endswith("kernel")]
    for a, b in np.ndindex(len(kernels), len(kernels)):
        assert a == b or abs(kernels[a] - kernels[b]).max() > 0.5
