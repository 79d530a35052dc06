"""Recipes: switches of the paper and of its authors' code."""

import dataclasses
import inspect

import pytest

from capsjax import (
    RECIPES,
    CapsNetConfig,
    adam,
    capsnet_loss,
)


def test_recipes_name_existing_options():
    fields = {f.name: f.default for f in dataclasses.fields(CapsNetConfig)}
    loss = inspect.signature(capsnet_loss).parameters
    switches = fields | {
        "margin_weight": loss["margin_weight"].default,
        "learning_rate_floor": inspect.signature(adam).parameters["floor"].default,
    }
    for recipe in RECIPES.values():
        assert recipe.keys() == RECIPES["paper"].keys() <= switches.keys()
    assert RECIPES["paper"] == {name: switches[name] for name in RECIPES["paper"]}
    assert loss["reconstruction_weight"].default == 0.0005
    assert RECIPES["official"] == {
        "init": "official",
        "routing_bias": True,
        "primary_scale": 1 / 32,
        "margin_weight": 1 / 20,
        "learning_rate_floor": 1e-6,
    }


def test_recipes_are_read_only():
    with pytest.raises(TypeError):
        RECIPES["mine"] = {}
    with pytest.raises(TypeError):
        RECIPES["paper"]["init"] = "official"
