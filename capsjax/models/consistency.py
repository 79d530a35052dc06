"""Whether the sizes and choices of a CapsNet fit each other."""

from typing import Any

from capsjax.models.windows import smallest_image
from capsjax.placed_capsules import side_with_coordinates
from capsjax.routing import Routing, options_of
from capsjax.votes import VOTES


def check_consistency(config: Any, routing: Routing) -> None:
    """Refuse a configuration whose sizes or choices contradict each other.

    Args:
      config: a :class:`capsjax.CapsNetConfig` whose names are known.
      routing: that of its class capsules.

    Raises:
      ValueError: there is no class, the image is too small for the kernels, the channels do not
        make up the primary capsules, a decoder has no layers, the routing has no such schedule, or
        votes have no such poses.
    """
    if config.trunk and config.padding != "SAME":
        raise ValueError(f"a trunk of residual blocks needs padding SAME, not {config.padding}")
    if config.num_classes < 1:
        raise ValueError(f"num_classes must be 1 or more, not {config.num_classes}")
    if config.decoder_kind == "transposed" and config.decoder == ():
        raise ValueError("a decoder of transposed convolutions needs the channels of its layers")
    _check_image_size(config)
    _check_depthwise(config)
    _check_grouping(config)
    _check_schedule(config, routing)
    _check_poses(config)


def _check_image_size(config):
    smallest, (height, width, _) = smallest_image(config.windows), config.image_shape
    if min(height, width) < smallest:
        kernels = ", ".join(f"{w.kernel}x{w.kernel}" for w in config.windows if not w.padded)
        raise ValueError(
            f"image_shape: {height}x{width} pixels are too few for valid convolutions of "
            f"{kernels}; the smallest image is {smallest}x{smallest}, or else "
            "capsjax.models.fit_image makes kernels smaller"
        )


def _check_depthwise(config):
    channels, needed = config.primary_channels, config.primary_types * config.primary_pose
    if config.primary_depthwise and channels != needed:
        raise ValueError(
            f"depthwise primary capsules need types times pose = {channels} channels, not "
            f"{config.primary_types} * {config.primary_pose}"
        )


def _check_grouping(config):
    if config.primary_grouping == "channels":
        return
    typed = config.capsule_layers or config.coordinates != "none" or config.votes != "full"
    if typed or config.primary_norm != "none" or config.presence != "length":
        raise ValueError(
            "primary_grouping 'positions' is for full votes and lengths alone: such capsules have "
            "neither types nor places"
        )


def _check_schedule(config, routing):
    if config.pose_norm == "batch" and "standardized" not in options_of(config.routing):
        raise ValueError(f"pose_norm 'batch' is for routing 'vb', not {config.routing!r}")
    if config.routing_schedule != "concurrent":
        return
    if config.pose_norm == "batch":
        raise ValueError("the concurrent schedule has no pose_norm 'batch'")
    if routing.traits.compete_across_positions and config.capsule_layers:
        raise ValueError(f"routing {config.routing!r} has no concurrent schedule")
    if config.routing_gradient != "full":
        raise ValueError(
            "the concurrent schedule has no other gradient than full, not "
            f"{config.routing_gradient!r}"
        )


def _check_poses(config):
    pose = config.primary_pose
    for _ in config.capsule_layers:
        VOTES[config.layer_votes].shape(1, 1, config.class_pose, pose, 1)
        pose = config.class_pose
    VOTES[config.votes].shape(1, 1, config.class_pose, pose, 1)
    if config.coordinates != "none":
        side_with_coordinates(config.class_pose)
