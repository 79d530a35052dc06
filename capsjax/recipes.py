"""Recipes: the paper's text and the authors' code, where they train differently."""

import types
from collections.abc import Mapping
from typing import Any

# Every difference between the two that changes training, as values of the network's configuration
# (first three) and of the training run (last two). The mappings are read-only: runs share them.
RECIPES: Mapping[str, Mapping[str, Any]] = types.MappingProxyType(
    {
        "paper": types.MappingProxyType(
            {
                "init": "lecun",
                "routing_bias": False,
                "primary_scale": 1.0,
                "margin_weight": 1.0,
                "learning_rate_floor": 0.0,
            }
        ),
        "official": types.MappingProxyType(
            {
                "init": "official",
                "routing_bias": True,
                "primary_scale": 1 / 32,
                "margin_weight": 1 / 20,
                "learning_rate_floor": 1e-6,
            }
        ),
    }
)
