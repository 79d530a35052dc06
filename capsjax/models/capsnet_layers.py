"""The layers of a CapsNet, made as its configuration describes them."""

import math

import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers as init

from capsjax.conv_capsules import ConvCapsules
from capsjax.models.backbone import ResidualTrunk, TransposedDecoder
from capsjax.models.capsnet_config import CapsNetConfig
from capsjax.models.initial_weights import BIASES, kernel_options
from capsjax.models.windows import COORDINATES, centres
from capsjax.modules import RoutedCapsules
from capsjax.normalization import BatchNorm, ExampleNorm, GroupNorm, InstanceNorm
from capsjax.placed_capsules import PlacedCapsules
from capsjax.plain_layers import Conv, Decoder
from capsjax.primary_capsules import PrimaryCapsules
from capsjax.routing import CapsuleShards

# The authors' code has no factor on the sum of the votes. Their networks need none within a factor
# of four; others, of two or a hundred classes, get it.
OFFICIAL_TOLERANCE = 4.0
GROUPS = 8  # of channels, in group normalization, where their number allows it


def make_convs(config: CapsNetConfig, rngs: nnx.Rngs) -> list[Conv]:
    """Make the convolutions before the primary capsules, lowest first."""
    options = _conv_options(config, "conv", rngs, bias=config.conv_bias)
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
        "layer": lambda: ExampleNorm(width, epsilon=epsilon, rngs=rngs),
        "batch": lambda: batch_norm(config, width),
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

    options = _conv_options(config, "conv", rngs, bias=config.conv_bias)
    return ResidualTrunk(config.convs[-1][0], config.trunk, norm, **options)


def batch_norm(config: CapsNetConfig, channels: int, *, affine: bool = True) -> BatchNorm:
    """Make a batch normalization with the constants of the configuration."""
    constants = {"momentum": config.norm_momentum, "epsilon": config.norm_epsilon}
    return BatchNorm(channels, scale=affine, offset=affine, **constants)


def make_layer_norms(config: CapsNetConfig) -> list[BatchNorm]:
    """Make those of ``pose_norm="batch"``: of poses and of logits of each layer, lowest first."""
    types = [*(layer[0] for layer in config.capsule_layers), config.num_classes]
    return [batch_norm(config, n, affine=False) for n in types for _ in ("pose", "logit")]


def make_primary(config: CapsNetConfig, rngs: nnx.Rngs) -> PrimaryCapsules:
    """Make the primary capsules."""
    norms = ()
    if config.primary_norm == "batch":
        norms = [batch_norm(config, config.primary_types) for _ in ("pose", "logit")]
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
        offset=config.primary_offset,
        grouping=config.primary_grouping,
        norms=norms,
        present=kernel_options(config.init, "present"),
        **_conv_options(config, "primary", rngs, bias=config.primary_bias),
    )


def make_routed_layers(
    config: CapsNetConfig, rngs: nnx.Rngs
) -> tuple[list[ConvCapsules], RoutedCapsules]:
    """Make the convolutional capsule layers, lowest first, and the class capsules."""
    options = {
        "gradient": config.routing_gradient,
        # Networks of matrix capsules with initial weights of their own start without identity.
        "identity": not kernel_options(config.init, "capsules"),
        **_common(config, rngs),
    }
    routing = config.make_routing(classes=False)
    grid, types, pose = config.primary_grid, config.primary_types, config.primary_pose
    # Convolutional layers share their weights among positions, so that all devices have room.
    classes = lower = config.routing_implementation
    if isinstance(classes, CapsuleShards):
        lower = "auto"
    layers = []
    for types_out, kernel, stride in config.capsule_layers:
        sizes = (grid, types, pose, types_out, config.class_pose, kernel, stride)
        own = {"votes": config.layer_votes, **kernel_options(config.init, "capsules", kernel)}
        layers.append(ConvCapsules(*sizes, routing=routing, implementation=lower, **own, **options))
        grid, types, pose = layers[-1].grid, types_out, config.class_pose
    sizes = (grid[0] * grid[1] * types, pose, config.num_classes, config.class_pose)
    options |= {"routing": config.make_routing(), **kernel_options(config.init, "classes")}
    options["implementation"] = classes
    if config.init == "official":
        options["tolerance"] = OFFICIAL_TOLERANCE
    make = RoutedCapsules
    if config.coordinates != "none":
        make, options["places"] = PlacedCapsules, _places(config, grid)
    return layers, make(*sizes, votes=config.votes, types=types, **options)


def _places(config, grid):
    """Return the coordinates of the rows and columns of the capsules below the class capsules."""
    return tuple(
        tuple(COORDINATES[config.coordinates](centres(config.windows, count), side))
        for count, side in zip(grid, config.image_shape)
    )


def make_decoder(config: CapsNetConfig, rngs: nnx.Rngs) -> Decoder | TransposedDecoder:
    """Make the decoder of a configuration that has one."""
    inputs = config.num_classes * config.class_pose
    if config.decoder_kind == "transposed":
        sizes = (inputs, config.decoder, config.image_shape)
        return TransposedDecoder(*sizes, **_common(config, rngs))
    inits = {**kernel_options(config.init, "decoder"), **_bias_init(config)}
    if config.init == "efficient":
        inits["last_kernel_init"] = init.glorot_normal()
    return Decoder(inputs, config.decoder, config.image_shape, **inits, **_common(config, rngs))


def _unchanged(x):
    return x


def _common(config, rngs) -> dict:
    """Return the arguments that all layers take."""
    return {"dtype": jnp.dtype(config.dtype), "rngs": rngs}


def _small_uniform(key, shape, dtype):
    """Draw from -0.05 to 0.05, as ``random_uniform`` of Keras does."""
    return init.uniform(0.1)(key, shape, dtype) - 0.05


def _bias_init(config) -> dict:
    return {"bias_init": BIASES[config.init]} if config.init in BIASES else {}


def _conv_options(config, layer, rngs, *, bias) -> dict:
    """Return the arguments of convolutions and of the primary capsules."""
    inits = {**kernel_options(config.init, layer), **_bias_init(config)}
    if not bias:
        inits["bias_init"] = None
    return {"padding": config.padding, **inits, **_common(config, rngs)}
