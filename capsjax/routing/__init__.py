"""Routing algorithms: from votes to the outputs of the next layer's capsules."""

from capsjax.routing.dynamic import (
    GRADIENTS,
    RoutingOutput,
    agreement,
    coupling_coefficients,
    dynamic_routing,
    weighted_sum,
)

__all__ = [
    "GRADIENTS",
    "RoutingOutput",
    "agreement",
    "coupling_coefficients",
    "dynamic_routing",
    "weighted_sum",
]
