"""Routing algorithms: from votes to the outputs of the next layer's capsules."""

from capsjax import deprecated
from capsjax.routing.agreement import PassInputs, PassKernels
from capsjax.routing.base import (
    GRADIENTS,
    InputCapsules,
    Routing,
    RoutingOutput,
    RoutingTraits,
    Sizes,
    Trace,
    by_agreement,
    check_choice,
)
from capsjax.routing.dynamic import dynamic, kmeans
from capsjax.routing.engine import IMPLEMENTATIONS, has_pass_kernels, route
from capsjax.routing.equations import agreement, weighted_sum
from capsjax.routing.field import field_index, field_softmax, over_field
from capsjax.routing.fixed import log_mean_coupling
from capsjax.routing.mixture import Gaussians, by_mixture
from capsjax.routing.normalizers import NORMALIZERS, normalize
from capsjax.routing.passes import initial_routing_state, routing_pass, run_routing
from capsjax.routing.procedure import dynamic_routing
from capsjax.routing.registry import ROUTINGS, make_routing, options_of
from capsjax.routing.shards import CapsuleShards

__all__ = [
    "CapsuleShards",
    "GRADIENTS",
    "Gaussians",
    "IMPLEMENTATIONS",
    "InputCapsules",
    "NORMALIZERS",
    "PassInputs",
    "PassKernels",
    "ROUTINGS",
    "Routing",
    "RoutingOutput",
    "RoutingTraits",
    "Sizes",
    "Trace",
    "agreement",
    "by_agreement",
    "by_mixture",
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
__getattr__ = deprecated.renamed(
    __name__,
    {
        "Children": "InputCapsules",
        "Inputs": "PassInputs",
        "Sweeps": "PassKernels",
        "by_sweeps": "has_pass_kernels",
        "make": "make_routing",
        "run": "run_routing",
        "start": "initial_routing_state",
        "step": "routing_pass",
    },
)
