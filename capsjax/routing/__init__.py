"""Routing algorithms: from votes to the outputs of the next layer's capsules."""

from capsjax.routing.agreement import PassInputs, PassKernels
from capsjax.routing.base import (
    GRADIENTS,
    InputCapsules,
    Routing,
    RoutingOutput,
    Sizes,
    Trace,
    by_agreement,
    check_choice,
    initial_routing_state,
    routing_pass,
    run_routing,
)
from capsjax.routing.dynamic import agreement, dynamic, dynamic_routing, kmeans, weighted_sum
from capsjax.routing.engine import IMPLEMENTATIONS, has_pass_kernels, route
from capsjax.routing.field import field_index, field_softmax, over_field
from capsjax.routing.fixed import log_mean_coupling
from capsjax.routing.normalizers import NORMALIZERS, normalize
from capsjax.routing.registry import ROUTINGS, make_routing, options_of

__all__ = [
    "GRADIENTS",
    "IMPLEMENTATIONS",
    "InputCapsules",
    "NORMALIZERS",
    "PassInputs",
    "PassKernels",
    "ROUTINGS",
    "Routing",
    "RoutingOutput",
    "Sizes",
    "Trace",
    "agreement",
    "by_agreement",
    "check_choice",
    "dynamic",
    "dynamic_routing",
    "field_index",
    "field_softmax",
    "has_pass_kernels",
    "initial_routing_state",
    "kmeans",
    "log_mean_coupling",
    "make_routing",
    "normalize",
    "options_of",
    "over_field",
    "route",
    "routing_pass",
    "run_routing",
    "weighted_sum",
]
