"""Capsule networks (Sabour, Frosst & Hinton 2017) in JAX and Flax.

Equations are pure functions, written for one example and batched by ``jax.vmap``. Flax NNX modules
own the parameters and call the equations. :func:`create_model` turns a network into two pure
functions, ``init`` and ``apply``.

The package uses these letters for the axes of arrays:

    B batch    I input capsules     K pose size of an input capsule
    H height   J output capsules    D pose size of an output capsule
    W width    C channels           O output channels
    R routing iterations

    u [I, K]   W [I, J, D, K]   votes [I, J, D]   coupling [I, J]   s, v [J, D]
"""

from capsjax import deprecated
from capsjax.batches import map_batches
from capsjax.capsules import Capsules
from capsjax.conv import conv2d
from capsjax.conv_capsules import ConvCapsules
from capsjax.functional import Model, Variables, count_parameters, create_model, from_module
from capsjax.inference import Classification, classify
from capsjax.losses import (
    cross_entropy,
    cross_entropy_of_lengths,
    cross_entropy_of_logits,
    margin_loss,
    reconstruction_loss,
    spread_loss,
)
from capsjax.masks import argmax_mask, label_mask, mask_capsules
from capsjax.models import CNN, PRESETS, CapsNet, CapsNetConfig, CNNConfig, Prediction, preset
from capsjax.modules import RoutedCapsules
from capsjax.normalization import BatchNorm, InstanceNorm
from capsjax.objectives import LOSSES, capsnet_loss, cross_entropy_loss
from capsjax.optimizers import (
    OPTIMIZERS,
    RATE_SCHEDULES,
    adam,
    make_optimizer,
    make_schedule,
)
from capsjax.placed_capsules import PlacedCapsules
from capsjax.plain_layers import Conv, Decoder
from capsjax.preprocessing import Preprocessing
from capsjax.pretrained import (
    Description,
    Pretrained,
    PretrainedError,
    describe_pretrained,
    load_pretrained,
    pretrained_names,
    save_pretrained,
)
from capsjax.primary_capsules import PrimaryCapsules
from capsjax.recipes import RECIPES
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
    TrainState,
    init_state,
    make_eval_step,
    make_gradient,
    make_train_step,
)
from capsjax.update_factors import scale_updates
from capsjax.votes import VOTES, prediction_vectors

__version__ = "0.1.0"

__all__ = [
    "BatchNorm",
    "CNN",
    "CNNConfig",
    "CapsNet",
    "CapsNetConfig",
    "Capsules",
    "Classification",
    "Conv",
    "ConvCapsules",
    "Decoder",
    "Description",
    "InstanceNorm",
    "LOSSES",
    "Model",
    "OPTIMIZERS",
    "PRESETS",
    "PlacedCapsules",
    "Prediction",
    "Preprocessing",
    "Pretrained",
    "PretrainedError",
    "PrimaryCapsules",
    "RECIPES",
    "ROUTINGS",
    "RoutedCapsules",
    "Routing",
    "RoutingOutput",
    "RoutingTraits",
    "RATE_SCHEDULES",
    "SQUASHES",
    "Sizes",
    "TrainState",
    "VOTES",
    "Variables",
    "adam",
    "argmax_mask",
    "capsnet_loss",
    "classify",
    "conv2d",
    "count_parameters",
    "create_model",
    "cross_entropy",
    "cross_entropy_loss",
    "cross_entropy_of_lengths",
    "cross_entropy_of_logits",
    "describe_pretrained",
    "dynamic_routing",
    "from_module",
    "init_state",
    "label_mask",
    "load_pretrained",
    "log_mean_coupling",
    "make_eval_step",
    "make_gradient",
    "make_optimizer",
    "make_routing",
    "make_schedule",
    "make_train_step",
    "margin_loss",
    "map_batches",
    "mask_capsules",
    "prediction_vectors",
    "preset",
    "pretrained_names",
    "reconstruction_loss",
    "route",
    "safe_norm",
    "save_pretrained",
    "scale_updates",
    "spread_loss",
    "squash",
]
__getattr__ = deprecated.renamed(__name__, {"create": "create_model", "make": "make_routing"})
