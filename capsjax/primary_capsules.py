"""The Flax NNX module of the lowest capsules: a convolution divided into poses."""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
from flax import nnx

from capsjax.capsules import Capsules
from capsjax.plain_layers import Conv
from capsjax.routing import check_choice
from capsjax.squash import POSE_MAPS, layer_norm, no_squash, safe_norm, squash

ACTIVATIONS = ("length", "sigmoid")
GROUPINGS = ("channels", "positions")


class PrimaryCapsules(nnx.Module):
    """The lowest capsule layer: a convolution whose channels are divided into pose vectors.

    Neighbouring channels form a capsule: channel ``type * pose + k`` is component k of
    the capsule of that type, at every position of the grid.

    Args:
      channels_in: number of channels of the feature map.
      types: number of capsule types.
      pose: pose size K.
      kernel: side of the kernel of the convolution, in pixels.
      stride: step of the convolution, in pixels.
      squash: name of the map of the poses, a key of :data:`capsjax.squash.POSE_MAPS`.
      activation: ``length`` of the squashed pose, even if the pose is passed on unsquashed, or
        ``sigmoid``, of a second convolution (Hinton, Sabour & Frosst 2018).
      depthwise: see :class:`capsjax.plain_layers.Conv` (Efficient-CapsNet, Mazzia et al. 2021).
      offset: added to the argument of the sigmoid.
      grouping: ``channels``, see above. With ``positions`` the numbers of each channel, row by row,
        one channel after another, are cut into poses: what public PyTorch code does that views
        ``[B, C, H, W]`` as poses, here for weights that were trained so. Capsules then have no
        type, and their pose mixes positions.
      norms: two normalizations ``[..., T]`` of T types, of the components of the poses and of the
        arguments of the sigmoid, or none.
      present: arguments of the second convolution that differ from those of the first.
      conv: further arguments of :class:`capsjax.plain_layers.Conv`.

    Raises:
      ValueError: a name is unknown.
    """

    def __init__(
        self,
        channels_in: int,
        types: int,
        pose: int,
        kernel: int,
        stride: int,
        *,
        squash: str = "paper",
        activation: str = "length",
        depthwise: bool = False,
        offset: float = 0.0,
        grouping: str = "channels",
        norms: Sequence[nnx.Module] = (),
        present: dict | None = None,
        **conv,
    ):
        check_choice("activation", activation, ACTIVATIONS)
        check_choice("grouping", grouping, GROUPINGS)
        self.conv = Conv(
            channels_in, types * pose, kernel, stride=stride, depthwise=depthwise, **conv
        )
        if activation == "sigmoid":
            options = conv | (present or {})
            self.present = Conv(channels_in, types, kernel, stride=stride, **options)
        if norms:
            self.norms = nnx.List(norms)
        self.types, self.offset, self.normalizes = types, offset, bool(norms)
        self.grouping = grouping
        check_choice("squash", squash, POSE_MAPS)
        self.pose, self.squash, self.activation = pose, POSE_MAPS[squash], activation

    def __call__(self, x: chex.Array) -> Capsules:
        """Map a feature map ``[B, H, W, C]`` to capsules ``[B, I, K]``, I = H' W' types."""
        features = self.conv(x)
        B, H, W, _ = features.shape
        if self.grouping == "positions":
            features = features.transpose(0, 3, 1, 2)
        pose = features.reshape(B, H * W * self.types, self.pose)
        if self.normalizes:
            pose = by_type(self.norms[0], pose, self.types)
        pose = self.squash(pose)
        if self.activation == "length":
            unbounded = self.squash in (no_squash, layer_norm)
            bounded = squash(pose) if unbounded else pose
            return Capsules(pose, safe_norm(bounded))
        present = self.present(x).astype(pose.dtype)
        present = jax.lax.collapse(present, 1)
        if self.normalizes:
            present = by_type(self.norms[1], present, self.types)
        return Capsules(pose, jax.nn.sigmoid(present + self.offset if self.offset else present))


def by_type(norm: nnx.Module, x: chex.Array, types: int) -> jax.Array:
    """Normalize numbers of capsules ``[B, I]`` or ``[B, I, K]``, those of each type together.

    Args:
      norm: normalizes each channel of ``[..., T]``.
      x: of I capsules, the T types at a position one after another.
      types: T.
    """
    apart = jnp.moveaxis(x.reshape(x.shape[0], x.shape[1] // types, types, *x.shape[2:]), 2, -1)
    return jnp.moveaxis(norm(apart), -1, 2).reshape(x.shape)
