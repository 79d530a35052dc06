"""Recipes: switches of the paper and of its authors' code."""

import dataclasses
import inspect

import jax
import numpy as np
import pytest
import reference
from objective_cases import Scores
from small_networks import built, create_model, images

from capsjax import (
    RECIPES,
    CapsNetConfig,
    adam,
    capsnet_loss,
    preset,
)


def test_recipes_name_existing_options():
    fields = {f.name: f.default for f in dataclasses.fields(CapsNetConfig)}
    loss, optimizer = (inspect.signature(f).parameters for f in (capsnet_loss, adam))
    switches = fields | {
        "margin_weight": loss["margin_weight"].default,
        "learning_rate_floor": optimizer["floor"].default,
        "adam_epsilon_hat": optimizer["epsilon_hat"].default,
    }
    for recipe in RECIPES.values():
        assert recipe.keys() == RECIPES["paper"].keys() <= switches.keys()
    assert RECIPES["paper"] == {name: switches[name] for name in RECIPES["paper"]}
    assert loss["reconstruction_weight"].default == 0.0005
    assert RECIPES["official"] == {
        "init": "official",
        "routing_bias": True,
        "primary_scale": "official",
        "margin_weight": "official",
        "learning_rate_floor": 1e-6,
        "adam_epsilon_hat": True,
    }


def test_recipes_are_read_only():
    with pytest.raises(TypeError):
        RECIPES["mine"] = {}
    with pytest.raises(TypeError):
        RECIPES["paper"]["init"] = "official"


# Bug: it was 1/32 whatever the network. The authors' code makes one pass of routing with one input
# capsule, whose zero logits a softmax over the T types, and leaky one more, turns into shares.
@pytest.mark.parametrize(
    "name, changes, share",
    [
        ("capsnet_mnist", {}, 1 / 32),
        ("capsnet_small", {}, 1 / 8),
        ("capsnet_svhn", {}, 1 / 16),
        ("capsnet_cifar10", {}, 1 / 65),
        ("capsnet_cifar10", {"routing": "dynamic"}, 1 / 64),
        ("capsnet_mnist", {"primary_types": 3, "routing": "leaky"}, 1 / 4),
        ("capsnet_mnist", {"primary_types": 3, "routing": "em"}, 1 / 3),
    ],
)
def test_official_primary_scale_is_the_share_of_a_type(name, changes, share):
    config = preset(name, primary_scale="official", **changes)
    assert config.primary_factor == pytest.approx(share, rel=1e-15)
    assert dataclasses.replace(config, primary_scale=0.25).primary_factor == 0.25
    types = np.zeros((1, config.primary_types))
    leaky = config.routing == "leaky"
    coupling = (reference.over_parents_or_nobody if leaky else reference.over_parents)(types)
    np.testing.assert_allclose(coupling, share, rtol=1e-15)


@pytest.mark.parametrize("routing, share", [("dynamic", 1 / 2), ("leaky", 1 / 3)])
def test_official_primary_scale_reaches_the_network(routing, share):
    config, params, apply = built(primary_scale="official", routing=routing)
    assert config.primary_types == 2
    explicit = create_model(dataclasses.replace(config, primary_scale=share))
    x = images()
    got = jax.jit(lambda p, x: (apply(p, x), explicit.apply(p, x)))(params, x)
    np.testing.assert_array_equal(got[0].scores, got[1].scores)


@pytest.mark.parametrize("value", ["paper", "1/32", ""])
def test_other_words_are_refused(value):
    message = f"must be a number or official, not {value!r}"
    with pytest.raises(ValueError, match=f"primary_scale {message}"):
        CapsNetConfig(primary_scale=value)
    with pytest.raises(ValueError, match=f"margin_weight {message}"):
        capsnet_loss(Scores, margin_weight=value)


# Bug: it was 1/20 whatever the number of classes.
@pytest.mark.parametrize("classes", [2, 5, 10])
def test_official_margin_loss_is_half_the_mean_over_classes(classes):
    scores = np.random.default_rng(0).uniform(size=classes).astype(np.float32)
    loss = jax.jit(capsnet_loss(Scores, margin_weight="official"))
    labels = np.arange(classes)
    losses, metrics = loss(scores, np.zeros((classes, 1, 1, 1), np.float32), labels)
    for label in labels:
        # research/capsules/models/layers/layers.py: 0.5 * cost, and a mean over batch and classes.
        present = np.eye(classes)[label]
        logits = scores.astype(float) - 0.5
        cost = present * (logits < 0.4) * (logits - 0.4) ** 2
        cost = 0.5 * cost + 0.25 * (1 - present) * (logits > -0.4) * (logits + 0.4) ** 2
        assert losses[label] == pytest.approx(np.mean(cost), rel=1e-5)
        unweighted = reference.margin_loss(scores.astype(float), present)
        assert metrics["margin_loss"][label] == pytest.approx(unweighted, rel=1e-5)
