"""Routing algorithms: from votes to the outputs of the next layer's capsules."""

from capsjax.routing.base import (
    GRADIENTS,
    Children,
    Routing,
    RoutingOutput,
    Sizes,
    Trace,
    by_agreement,
    check_choice,
    run,
    start,
    step,
)
from capsjax.routing.dynamic import agreement, dynamic, dynamic_routing, kmeans, weighted_sum
from capsjax.routing.engine import IMPLEMENTATIONS, by_sweeps, route
from capsjax.routing.field import field_index, field_softmax, over_field
from capsjax.routing.fixed import log_mean_coupling
from capsjax.routing.normalizers import NORMALIZERS, normalize
from capsjax.routing.registry import ROUTINGS, make, options_of
from capsjax.routing.sweeps import Inputs, Sweeps

__all__ = [
    "Children",
    "GRADIENTS",
    "IMPLEMENTATIONS",
    "Inputs",
    "NORMALIZERS",
    "ROUTINGS",
    "Routing",
    "RoutingOutput",
    "Sizes",
    "Sweeps",
    "Trace",
    "agreement",
    "by_agreement",
    "by_sweeps",
    "check_choice",
    "dynamic",
    "dynamic_routing",
    "field_index",
    "field_softmax",
    "kmeans",
    "log_mean_coupling",
    "make",
    "normalize",
    "options_of",
    "over_field",
    "route",
    "run",
    "start",
    "step",
    "weighted_sum",
]
