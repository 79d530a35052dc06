"""Routing algorithms: from votes to the outputs of the next layer's capsules."""

from capsjax.routing.dynamic import (
    GRADIENTS,
    NORMALIZERS,
    RoutingOutput,
    agreement,
    coupling_coefficients,
    dynamic_routing,
    weighted_sum,
)
from capsjax.routing.engine import IMPLEMENTATIONS, route
from capsjax.routing.sweeps import Inputs, Sweeps

__all__ = [
    "GRADIENTS",
    "IMPLEMENTATIONS",
    "Inputs",
    "NORMALIZERS",
    "RoutingOutput",
    "Sweeps",
    "agreement",
    "coupling_coefficients",
    "dynamic_routing",
    "route",
    "weighted_sum",
]
