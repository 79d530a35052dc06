"""CapsNet: convolution, primary capsules, routed capsules in one layer or more, decoder."""

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import initializers as init

from capsjax.conv_capsules import ConvCapsules
from capsjax.losses import argmax_mask, label_mask, mask_capsules
from capsjax.models.capsnet_config import CapsNetConfig
from capsjax.models.concurrent import concurrent
from capsjax.modules import Capsules, Conv, Decoder, PrimaryCapsules, RoutedCapsules
from capsjax.precision import accumulator
from capsjax.routing import RoutingOutput


class Prediction(NamedTuple):
    """What every network says about a batch of images."""

    scores: jax.Array  # [B, J]; the largest is the predicted class
    pose: jax.Array | None = None  # [B, J, D] class capsules
    reconstruction: jax.Array | None = None  # [B, H, W, C] in [0, 1]


class CapsNet(nnx.Module):
    """Convolutions, primary capsules, routed capsules, decoder."""

    def __init__(self, config: CapsNetConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        official = c.init == "official"
        bias = {"bias_init": init.constant(0.1)} if official else {}

        def kernel(stddev):
            return {"kernel_init": init.truncated_normal(stddev)} if official else {}

        common = {"dtype": jnp.dtype(c.dtype), "rngs": rngs}
        padded = {"padding": c.padding, **bias, **common}
        channels, convs = c.image_shape[2], []
        for width, size, stride in c.convs:
            convs.append(Conv(channels, width, size, stride=stride, **kernel(0.05), **padded))
            channels = width
        self.conv = convs[0]
        if c.more_convs:
            self.more_convs = nnx.List(convs[1:])
        if c.conv_norm:
            # Over a whole example, so that no image depends on its batch-mates.
            self.norms = nnx.List(
                nnx.LayerNorm(width, reduction_axes=(1, 2, 3), feature_axes=3, rngs=rngs)
                for width, _, _ in c.convs
            )
        self.primary = PrimaryCapsules(
            channels,
            c.primary_types,
            c.primary_pose,
            c.primary_kernel,
            c.primary_stride,
            squash=c.primary_squash,
            activation=c.primary_activation,
            scale=c.primary_scale,
            depthwise=c.primary_depthwise,
            **kernel(0.1),
            **padded,
        )
        options = {
            "routing": c.make_routing(),
            "gradient": c.routing_gradient,
            "implementation": c.routing_implementation,
            **common,
        }
        grid, types, pose, layers = c.primary_grid, c.primary_types, c.primary_pose, []
        for types_out, size, stride in c.capsule_layers:
            shape = (grid, types, pose, types_out, c.class_pose, size, stride)
            layers.append(ConvCapsules(*shape, votes=c.layer_votes, **options))
            grid, types, pose = layers[-1].grid, types_out, c.class_pose
        if layers:
            self.layers = nnx.List(layers)
        self.grid = grid
        self.classes = RoutedCapsules(
            grid[0] * grid[1] * types,
            pose,
            c.num_classes,
            c.class_pose,
            votes=c.votes,
            types=types,
            **kernel(0.1),
            **options,
        )
        if c.decoder is not None:
            inputs = c.num_classes * c.class_pose
            self.decoder = Decoder(
                inputs, c.decoder, c.image_shape, **kernel(0.1), **bias, **common
            )

    def primary_capsules(self, images: chex.Array) -> Capsules:
        """Primary capsules of images ``[B, H, W, C]`` with pixels in [0, 1]."""
        c = self.config
        chex.assert_shape(images, (None, *c.image_shape))
        x = images
        for n, conv in enumerate((self.conv, *(self.more_convs if c.more_convs else ()))):
            x = conv(x)
            x = jax.nn.relu(self.norms[n](x).astype(x.dtype) if c.conv_norm else x)
        return self.primary(x)

    def encode(self, images: chex.Array, *, trace: bool = False) -> RoutingOutput:
        """Class capsules of images ``[B, H, W, C]`` with pixels in [0, 1].

        Args:
          images: a batch. trace: of the class capsules, see :func:`capsjax.routing.route`; not
            with the concurrent schedule.
        """
        if self.config.routing_schedule == "concurrent":
            layers = [*self._layers(), self.classes]
            return concurrent(layers, self.primary_capsules(images), self._passed_on, self._located)
        return self.classes(self._seen_by_classes(images), trace=trace)

    def votes(self, images: chex.Array) -> jax.Array:
        """Votes ``[B, I, J, D]`` for the class capsules, for diagnostics."""
        return self.classes.input_capsules(self._seen_by_classes(images)).votes

    def _layers(self):
        return self.layers if self.config.capsule_layers else ()

    def _seen_by_classes(self, images) -> Capsules:
        x = self.primary_capsules(images)
        for layer in self._layers():
            x = self._passed_on(layer(x))
        return self._located(x)

    def _passed_on(self, out: RoutingOutput) -> Capsules:
        """What a routed layer shows the next."""
        pose = out.pose
        if self.config.pose_norm == "auto" and self.classes.routing.traits.poses_are_means:
            wide = pose.astype(accumulator(pose.dtype))
            square = jnp.mean(jnp.square(wide), (1, 2), keepdims=True)
            pose = (wide * jax.lax.rsqrt(square + 1e-6)).astype(pose.dtype)
        return Capsules(pose, out.activation)

    def _located(self, x: Capsules) -> Capsules:
        """Capsules that know where they are, if the configuration says so.

        The position, in (0, 1), is added to the first two components of the last column of
        a square pose matrix (Hinton, Sabour & Frosst 2018 add it to the votes).
        """
        if not self.config.coordinates:
            return x
        (height, width), (B, I, K) = self.grid, x.pose.shape
        side = math.isqrt(K)
        place = np.zeros((height, width, 1, K), np.float32)
        place[..., side - 1] = (np.arange(height) + 0.5)[:, None, None] / height
        place[..., 2 * side - 1] = (np.arange(width) + 0.5)[None, :, None] / width
        pose = x.pose.reshape(B, height, width, -1, K) + jnp.asarray(place, x.pose.dtype)[None]
        return x._replace(pose=pose.reshape(B, I, K))

    def decode(self, pose: chex.Array, mask: chex.Array) -> jax.Array:
        """Images ``[B, H, W, C]`` drawn from class capsules.

        Args:
          pose: ``[B, J, D]``.
          mask: ``[B, J]``, usually one for a single class.
        """
        return self.decoder(jax.vmap(mask_capsules)(pose, mask))

    def __call__(
        self, images: chex.Array, labels: chex.Array | None = None, key: chex.PRNGKey | None = None
    ) -> Prediction:
        """Classify and reconstruct.

        Args:
          images: ``[B, H, W, C]``, pixels in [0, 1].
          labels: ``[B]``; reconstruct from the capsule of the label, as in training.
            None: from the longest capsule. Scores and poses never depend on it.
          key: ignored; networks with dropout take it.
        """
        capsules = self.encode(images)
        if self.config.decoder is None:
            return Prediction(capsules.activation, capsules.pose)
        if labels is None:
            mask = jax.vmap(argmax_mask)(capsules.activation)
        else:
            mask = label_mask(labels, self.config.num_classes)
        return Prediction(capsules.activation, capsules.pose, self.decode(capsules.pose, mask))
