"""Capsule networks (Sabour, Frosst & Hinton 2017) in JAX and Flax.

Equations are pure functions, written for one example and batched by ``jax.vmap``; Flax
NNX modules own parameters and call them; :func:`create_model` turns a network into two pure
functions, ``init`` and ``apply``.

Letters of array shapes, everywhere in this package:

    B batch    I input capsules     K pose size of an input capsule
    H height   J output capsules    D pose size of an output capsule
    W width    C channels           O output channels
    R routing iterations

    u [I, K]   W [I, J, D, K]   votes [I, J, D]   coupling [I, J]   s, v [J, D]
"""

from capsjax import deprecated
from capsjax.conv import conv2d
from capsjax.conv_capsules import ConvCapsules
from capsjax.functional import Model, count_parameters, create_model, from_module
from capsjax.inference import Classification, classify
from capsjax.losses import (
    LOSSES,
    argmax_mask,
    cross_entropy,
    label_mask,
    margin_loss,
    mask_capsules,
    reconstruction_loss,
    spread_loss,
)
from capsjax.models import CNN, PRESETS, CapsNet, CapsNetConfig, CNNConfig, Prediction, preset
from capsjax.modules import Capsules, Conv, Decoder, PrimaryCapsules, RoutedCapsules
from capsjax.routing import (
    ROUTINGS,
    Routing,
    RoutingOutput,
    RoutingTraits,
    Sizes,
    dynamic_routing,
    log_mean_coupling,
    make_routing,
    route,
)
from capsjax.squash import SQUASHES, safe_norm, squash
from capsjax.train import (
    RECIPES,
    TrainState,
    adam,
    capsnet_loss,
    cross_entropy_loss,
    init_state,
    make_eval_step,
    make_gradient,
    make_train_step,
)
from capsjax.votes import VOTES, prediction_vectors

__version__ = "0.1.0"

__all__ = [
    "CNN",
    "CNNConfig",
    "CapsNet",
    "CapsNetConfig",
    "Capsules",
    "Classification",
    "Conv",
    "ConvCapsules",
    "Decoder",
    "LOSSES",
    "Model",
    "PRESETS",
    "Prediction",
    "PrimaryCapsules",
    "RECIPES",
    "ROUTINGS",
    "RoutedCapsules",
    "Routing",
    "RoutingOutput",
    "RoutingTraits",
    "SQUASHES",
    "Sizes",
    "TrainState",
    "VOTES",
    "adam",
    "argmax_mask",
    "capsnet_loss",
    "classify",
    "conv2d",
    "count_parameters",
    "create_model",
    "cross_entropy",
    "cross_entropy_loss",
    "dynamic_routing",
    "from_module",
    "init_state",
    "label_mask",
    "log_mean_coupling",
    "make_eval_step",
    "make_gradient",
    "make_routing",
    "make_train_step",
    "margin_loss",
    "mask_capsules",
    "prediction_vectors",
    "preset",
    "reconstruction_loss",
    "route",
    "safe_norm",
    "spread_loss",
    "squash",
]
__getattr__ = deprecated.renamed(__name__, {"create": "create_model", "make": "make_routing"})
