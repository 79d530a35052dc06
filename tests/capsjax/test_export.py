"""Networks as ``jax.export`` sees them: string keys, a symbolic batch, no device in particular."""

import jax
import numpy as np
import pytest
from jax import export

from capsjax import Variables, create_model, preset
from capsjax.backend import backend, portable, typical_size

SMALL = {"decoder": (8,)}
# A network with a list of layers, one with batch statistics, one with EM in convolutional layers.
NETWORKS = {
    "tiny": preset("capsnet_tiny", **SMALL),
    "efficient": preset("capsnet_efficient", **SMALL),
    "deep": preset("capsnet_deep", conv_channels=8, routing="em", **SMALL),
}


def keys(tree):
    found = set()
    for name, value in tree.items() if isinstance(tree, dict) else ():
        found |= {name} | keys(value)
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_keys_are_strings(name):
    model = create_model(NETWORKS[name])
    variables = jax.eval_shape(model.init, jax.random.key(0))
    trees = variables if isinstance(variables, Variables) else (variables,)
    assert all(isinstance(key, str) for tree in trees for key in keys(tree))
    assert "0" in keys(trees[0])  # those of a list


def test_parameters_with_the_integer_keys_of_older_versions_are_accepted():
    model = create_model(NETWORKS["tiny"])
    params = model.init(jax.random.key(0))
    layers = params["decoder"]["layers"]
    older = params | {"decoder": {"layers": {int(n): layer for n, layer in layers.items()}}}
    x = jax.random.uniform(jax.random.key(1), (2, 28, 28, 1))
    np.testing.assert_array_equal(*(model.apply(p, x).reconstruction for p in (params, older)))


@pytest.mark.parametrize(
    "name",
    ["tiny", *(pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS if n != "tiny")],
)
def test_exported_networks_give_the_same_for_any_batch(name):
    config = NETWORKS[name]
    model = create_model(config)
    variables = model.init(jax.random.key(0))
    batch = export.symbolic_shape("batch")
    specs = jax.eval_shape(lambda: variables)
    x = jax.ShapeDtypeStruct((*batch, *config.image_shape), "float32")
    scores = jax.jit(lambda variables, x: model.apply(variables, x).scores)
    with portable():
        exported = export.export(scores, platforms=("cpu", "cuda", "tpu"))(specs, x)
    again = export.deserialize(exported.serialize())
    for count in (1, 3):
        images = jax.random.uniform(jax.random.key(count), (count, *config.image_shape))
        found = again.call(variables, images)
        np.testing.assert_allclose(found, scores(variables, images), rtol=1e-5, atol=1e-6)


def test_portable_is_no_backend():
    before = backend()
    with portable():
        assert backend() == "portable"
    assert backend() == before


def test_the_typical_size_of_a_symbolic_batch():
    (batch,) = export.symbolic_shape("batch")
    assert (typical_size(7), typical_size(batch)) == (7, 128)
