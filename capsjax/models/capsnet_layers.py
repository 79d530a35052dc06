"""The layers of a CapsNet, made as its configuration describes them."""

import math

import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers as init

from capsjax.conv_capsules import ConvCapsules
from capsjax.models.backbone import ResidualTrunk, TransposedDecoder
from capsjax.models.capsnet_config import CapsNetConfig
from capsjax.modules import PrimaryCapsules, RoutedCapsules
from capsjax.normalization import BatchNorm, GroupNorm, InstanceNorm
from capsjax.plain_layers import Conv, Decoder

# The authors' code has no factor on the sum of the votes. Their networks need none within a factor
# of four; others, of two or a hundred classes, get it.
OFFICIAL_TOLERANCE = 4.0
GROUPS = 8  # of channels, in group normalization, where their number allows it
# Initial kernels of each kind of layer in the code of the authors, by CapsNetConfig.init.
KERNELS = {
    "official": {
        "conv": init.truncated_normal(0.05),
        **dict.fromkeys(("primary", "classes", "decoder"), init.truncated_normal(0.1)),
    },
    # The fan-in of W [I, J, D, K], as Keras computes it, is I J K.
    "efficient": {
        "conv": init.he_normal(),
        "primary": init.glorot_uniform(),
        "classes": init.he_normal(in_axis=-1, out_axis=-2),
        "decoder": init.he_normal(),
    },
}


def make_convs(config: CapsNetConfig, rngs: nnx.Rngs) -> list[Conv]:
    """Make the convolutions before the primary capsules, lowest first."""
    options = _conv_options(config, "conv", rngs)
    channels = (config.image_shape[2], *(width for width, _, _ in config.convs))
    return [
        Conv(before, width, kernel, stride=stride, **options)
        for before, (width, kernel, stride) in zip(channels, config.convs)
    ]


def make_norm(config: CapsNetConfig, width: int, rngs: nnx.Rngs) -> nnx.Module:
    """Make the normalization of a number of channels."""
    epsilon = config.norm_epsilon
    small = {"scale_init": _small_uniform, "bias_init": _small_uniform}
    inits = small if config.init == "efficient" else {}
    make = {
        # Over a whole example, so that no result depends on other examples in the batch.
        "layer": lambda: nnx.LayerNorm(
            width, epsilon=epsilon, reduction_axes=(1, 2, 3), feature_axes=3, rngs=rngs
        ),
        "batch": lambda: BatchNorm(width, momentum=config.norm_momentum, epsilon=epsilon),
        "instance": lambda: InstanceNorm(width, epsilon=epsilon, rngs=rngs, **inits),
        "group": lambda: GroupNorm(width, groups=math.gcd(width, GROUPS), epsilon=epsilon),
    }
    return make[config.conv_norm]()


def make_norms(config: CapsNetConfig, rngs: nnx.Rngs) -> list[nnx.Module]:
    """Make the normalizations of the convolutions, lowest first."""
    return [make_norm(config, width, rngs) for width, _, _ in config.convs]


def make_trunk(config: CapsNetConfig, rngs: nnx.Rngs) -> ResidualTrunk:
    """Make the residual blocks of a configuration that has any."""

    def norm(width):
        return make_norm(config, width, rngs) if config.conv_norm != "none" else _unchanged

    options = _conv_options(config, "conv", rngs)
    return ResidualTrunk(config.convs[-1][0], config.trunk, norm, **options)


def make_primary(config: CapsNetConfig, rngs: nnx.Rngs) -> PrimaryCapsules:
    """Make the primary capsules."""
    return PrimaryCapsules(
        config.primary_channels,
        config.primary_types,
        config.primary_pose,
        config.primary_kernel,
        config.primary_stride,
        squash=config.primary_squash,
        activation=config.presence,
        scale=config.primary_factor,
        depthwise=config.primary_depthwise,
        **_conv_options(config, "primary", rngs),
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
    options |= _kernel_init(config, "classes")
    if config.init == "official":
        options["tolerance"] = OFFICIAL_TOLERANCE
    return layers, RoutedCapsules(*sizes, votes=config.votes, types=types, **options)


def make_decoder(config: CapsNetConfig, rngs: nnx.Rngs) -> Decoder | TransposedDecoder:
    """Make the decoder of a configuration that has one."""
    inputs = config.num_classes * config.class_pose
    if config.decoder_kind == "transposed":
        sizes = (inputs, config.decoder, config.image_shape)
        return TransposedDecoder(*sizes, **_common(config, rngs))
    inits = {**_kernel_init(config, "decoder"), **_bias_init(config)}
    if config.init == "efficient":
        inits["last_kernel_init"] = init.glorot_normal()
    return Decoder(inputs, config.decoder, config.image_shape, **inits, **_common(config, rngs))


def _unchanged(x):
    return x


def _common(config, rngs) -> dict:
    """Return the arguments that all layers take."""
    return {"dtype": jnp.dtype(config.dtype), "rngs": rngs}


def _kernel_init(config, layer) -> dict:
    """Return the initializer of the authors' code, if the configuration asks for it."""
    return {"kernel_init": KERNELS[config.init][layer]} if config.init in KERNELS else {}


def _small_uniform(key, shape, dtype):
    """Draw from -0.05 to 0.05, as ``random_uniform`` of Keras does."""
    return init.uniform(0.1)(key, shape, dtype) - 0.05


def _bias_init(config) -> dict:
    return {"bias_init": init.constant(0.1)} if config.init == "official" else {}


def _conv_options(config, layer, rngs) -> dict:
    """Return the arguments of convolutions and of the primary capsules."""
    inits = {**_kernel_init(config, layer), **_bias_init(config)}
    return {"padding": config.padding, **inits, **_common(config, rngs)}
