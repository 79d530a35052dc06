"""A batch in pieces: gradients, metrics and random numbers of the whole batch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import filled
from objective_cases import CAPSNET, CNN, batch
from small_networks import create_model

from capsjax import capsnet_loss, cross_entropy_loss, make_gradient
from capsjax.pieces import bernoulli, mean_over_pieces

KEY = jax.random.key(3)


def relative(got, want):
    """Returns the largest norm of a difference relative to that of the array."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return max(np.linalg.norm(np.ravel(a - b)) / np.linalg.norm(np.ravel(b)) for a, b in pairs)


@pytest.mark.parametrize("pieces", [2, 6])
@pytest.mark.parametrize("network", ["capsnet", "cnn"])
def test_gradients_and_metrics_are_those_of_the_whole_batch(network, pieces):
    """Also with the dropout of the CNN, whose mask is drawn for the whole batch."""
    config, loss_of = {"capsnet": (CAPSNET, capsnet_loss), "cnn": (CNN, cross_entropy_loss)}[
        network
    ]
    model = create_model(config)
    loss, params, examples = loss_of(model), filled(model), batch(config, 6)
    whole, parts = (jax.jit(make_gradient(loss, pieces=n)) for n in (1, pieces))
    want, metrics = whole(params, *examples, KEY, 0.5)
    got, same = parts(params, *examples, KEY, 0.5)
    assert relative(got, want) < 1e-6
    assert same.keys() == metrics.keys()
    for name in metrics:
        np.testing.assert_allclose(same[name], metrics[name], rtol=1e-6)
    if network == "cnn":
        other, _ = parts(params, *examples, jax.random.key(4), 0.5)
        assert relative(other, want) > 1e-2, "the key matters"


def test_means_in_numpy(x64):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 3)), {"a": rng.normal(size=12)}

    def function(part):
        x, y = part
        assert x.shape == (4, 3) and y["a"].shape == (4,)
        return jnp.mean(x**3 * y["a"][:, None], axis=0), {"b": jnp.mean(y["a"])}

    got, rest = mean_over_pieces(function, (jnp.asarray(x), jax.tree.map(jnp.asarray, y)), 3)
    np.testing.assert_allclose(got, (x**3 * y["a"][:, None]).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(rest["b"], y["a"].mean(), rtol=1e-12)


def test_every_example_keeps_what_is_drawn_for_it():
    """Also where networks are mapped, each with its own key, as in an ensemble."""
    keys = jax.random.split(KEY, 2)

    def draw(numbers):
        drawn = jax.vmap(lambda key: bernoulli(key, 0.5, (*numbers.shape, 5)))(keys)
        # The row of an example adds to the column of its number alone.
        where = jax.nn.one_hot(numbers, 12)
        return jnp.einsum("nba,bm->nma", drawn.astype(jnp.float32), where)

    want = jax.jit(draw)(jnp.arange(12))
    assert len(np.unique(want)) == 2
    for pieces in (2, 3, 12):
        mean = jax.jit(functools.partial(mean_over_pieces, draw, pieces=pieces))
        np.testing.assert_allclose(pieces * mean(jnp.arange(12)), want, rtol=1e-6)
    np.testing.assert_array_equal(want[0], jax.random.bernoulli(keys[0], 0.5, (12, 5)))


def test_what_is_refused():
    model = create_model(CAPSNET)
    gradient = make_gradient(capsnet_loss(model), pieces=4)
    with pytest.raises(ValueError, match="a batch of 6 can't be divided into 4 equal pieces"):
        gradient(filled(model), *batch(CAPSNET, 6), KEY)
    model = create_model(dataclasses.replace(CAPSNET, conv_norm="batch", norm_place="after"))
    gradient = make_gradient(capsnet_loss(model), pieces=2)
    with pytest.raises(ValueError, match="batch normalization, need it in one piece"):
        gradient(filled(model), *batch(CAPSNET, 6), KEY)
