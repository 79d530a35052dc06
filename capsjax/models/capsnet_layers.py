"""The layers of a CapsNet, made as its configuration describes them."""

import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers as init

from capsjax.conv_capsules import ConvCapsules
from capsjax.models.capsnet_config import CapsNetConfig
from capsjax.modules import PrimaryCapsules, RoutedCapsules
from capsjax.plain_layers import Conv, Decoder

# The authors' code has no factor on the sum of the votes. Their networks need none within a factor
# of four; others, of two or a hundred classes, get it.
OFFICIAL_TOLERANCE = 4.0


def make_convs(config: CapsNetConfig, rngs: nnx.Rngs) -> list[Conv]:
    """Make the convolutions before the primary capsules, lowest first."""
    options = _conv_options(config, 0.05, rngs)
    channels = (config.image_shape[2], *(width for width, _, _ in config.convs))
    return [
        Conv(before, width, kernel, stride=stride, **options)
        for before, (width, kernel, stride) in zip(channels, config.convs)
    ]


def make_primary(config: CapsNetConfig, rngs: nnx.Rngs) -> PrimaryCapsules:
    """Make the primary capsules."""
    return PrimaryCapsules(
        config.convs[-1][0],
        config.primary_types,
        config.primary_pose,
        config.primary_kernel,
        config.primary_stride,
        squash=config.primary_squash,
        activation=config.primary_activation,
        scale=config.primary_scale,
        depthwise=config.primary_depthwise,
        **_conv_options(config, 0.1, rngs),
    )


def make_routed_layers(
    config: CapsNetConfig, rngs: nnx.Rngs
) -> tuple[list[ConvCapsules], RoutedCapsules]:
    """Make the convolutional capsule layers, lowest first, and the class capsules."""
    options = {
        "routing": config.make_routing(),
        "gradient": config.routing_gradient,
        "implementation": config.routing_implementation,
        **_common(config, rngs),
    }
    grid, types, pose = config.primary_grid, config.primary_types, config.primary_pose
    layers = []
    for types_out, kernel, stride in config.capsule_layers:
        sizes = (grid, types, pose, types_out, config.class_pose, kernel, stride)
        layers.append(ConvCapsules(*sizes, votes=config.layer_votes, **options))
        grid, types, pose = layers[-1].grid, types_out, config.class_pose
    sizes = (grid[0] * grid[1] * types, pose, config.num_classes, config.class_pose)
    options |= _kernel_init(config, 0.1)
    if config.init == "official":
        options["tolerance"] = OFFICIAL_TOLERANCE
    return layers, RoutedCapsules(*sizes, votes=config.votes, types=types, **options)


def make_decoder(config: CapsNetConfig, rngs: nnx.Rngs) -> Decoder:
    """Make the decoder of a configuration that has one."""
    inputs = config.num_classes * config.class_pose
    inits = {**_kernel_init(config, 0.1), **_bias_init(config)}
    return Decoder(inputs, config.decoder, config.image_shape, **inits, **_common(config, rngs))


def _common(config, rngs) -> dict:
    """Return the arguments that all layers take."""
    return {"dtype": jnp.dtype(config.dtype), "rngs": rngs}


def _kernel_init(config, stddev) -> dict:
    """Return the initializer of the authors' code, if the configuration asks for it."""
    return {"kernel_init": init.truncated_normal(stddev)} if config.init == "official" else {}


def _bias_init(config) -> dict:
    return {"bias_init": init.constant(0.1)} if config.init == "official" else {}


def _conv_options(config, stddev, rngs) -> dict:
    """Return the arguments of convolutions and of the primary capsules."""
    inits = {**_kernel_init(config, stddev), **_bias_init(config)}
    return {"padding": config.padding, **inits, **_common(config, rngs)}
