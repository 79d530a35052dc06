"""CapsNet: convolutions, primary capsules, one or more layers of routed capsules, decoder."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import nnx

from capsjax.capsules import Capsules
from capsjax.masks import argmax_mask, label_mask, mask_capsules
from capsjax.models.capsnet_config import CapsNetConfig
from capsjax.models.capsnet_layers import (
    batch_norm,
    make_convs,
    make_decoder,
    make_layer_norms,
    make_norms,
    make_primary,
    make_routed_layers,
    make_trunk,
)
from capsjax.models.concurrent import route_concurrently
from capsjax.precision import accumulator
from capsjax.preprocessing import check_pixels, standardize
from capsjax.primary_capsules import by_type
from capsjax.routing import RoutingOutput


class Prediction(NamedTuple):
    """The output of every network for a batch of images."""

    scores: jax.Array  # [B, J]; the class of the largest score is the predicted one
    pose: jax.Array | None = None  # [B, J, D] class capsules
    reconstruction: jax.Array | None = None  # [B, H, W, C] in [0, 1]


class CapsNet(nnx.Module):
    """Convolutions, primary capsules, routed capsules, decoder.

    Args:
      config: sizes and choices.
      rngs: source of the initial parameters.
    """

    def __init__(self, config: CapsNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        # The order of these statements is that in which parameters are drawn from the generator.
        convs = make_convs(config, rngs)
        self.conv = convs[0]
        if config.more_convs:
            self.more_convs = nnx.List(convs[1:])
        if config.conv_norm != "none":
            self.norms = nnx.List(make_norms(config, rngs))
        if config.trunk:
            self.trunk = make_trunk(config, rngs)
        self.primary = make_primary(config, rngs)
        layers, self.classes = make_routed_layers(config, rngs)
        if layers:
            self.layers = nnx.List(layers)
        if config.input_norm == "batch":
            self.input_norm = batch_norm(config, config.image_shape[2], affine=False)
        if config.pose_norm == "batch":
            self.layer_norms = nnx.List(make_layer_norms(config))
        if config.decoder is not None:
            self.decoder = make_decoder(config, rngs)

    def primary_capsules(self, images: chex.Array) -> Capsules:
        """Compute the primary capsules of images ``[B, H, W, C]`` with pixels in [0, 1]."""
        c = self.config
        chex.assert_shape(images, (None, *c.image_shape))
        check_pixels(images)
        x = images
        if c.input_norm == "batch":
            x = self.input_norm(images)
        elif c.input_norm == "image":
            x = jax.vmap(standardize)(images)
        for n, conv in enumerate((self.conv, *(self.more_convs if c.more_convs else ()))):
            steps = [_activation(c.conv_slope)]
            if c.conv_norm != "none":
                steps.insert(0 if c.norm_place == "before" else 1, self.norms[n])
            x = conv(x)
            for step in steps:
                x = step(x).astype(x.dtype)
        return self.primary(self.trunk(x) if c.trunk else x)

    def encode(self, images: chex.Array, *, trace: bool = False) -> RoutingOutput:
        """Compute the class capsules of images.

        Args:
          images: ``[B, H, W, C]``, pixels in [0, 1].
          trace: whether to trace the routing to the class capsules, see
            :func:`capsjax.routing.route`. The concurrent schedule ignores it.
        """
        if self.config.routing_schedule == "concurrent":
            layers = [*self._layers(), self.classes]
            x = self.primary_capsules(images)
            return route_concurrently(layers, x, self._normalize_poses)
        out = self.classes(self._class_inputs(images), trace=trace)
        return self._normalize_by_type(out, len(self._layers()))

    def capsules(self, images: chex.Array) -> dict[str, Capsules]:
        """Compute the capsules of every layer, by the path of its parameters, lowest first.

        The layers are computed one after the other, whatever the schedule.
        """
        x = self.primary_capsules(images)
        all_layers = {"primary": x}
        for n, layer in enumerate(self._layers()):
            x = self._to_inputs(layer(x), n)
            all_layers[f"layers/{n}"] = x
        out = self._normalize_by_type(self.classes(x), len(self._layers()))
        return all_layers | {"classes": Capsules(out.pose, out.activation)}

    def votes(self, images: chex.Array) -> jax.Array:
        """Compute the votes ``[B, I, J, D]`` for the class capsules, for diagnostics."""
        return self.classes.input_capsules(self._class_inputs(images)).votes

    def _layers(self):
        return self.layers if self.config.capsule_layers else ()

    def _class_inputs(self, images) -> Capsules:
        """Compute the input capsules of the class capsules."""
        x = self.primary_capsules(images)
        for n, layer in enumerate(self._layers()):
            x = self._to_inputs(layer(x), n)
        return x

    def _to_inputs(self, out: RoutingOutput, n: int) -> Capsules:
        """Make the output of layer n input capsules of the next, with ``pose_norm``."""
        return self._normalize_poses(self._normalize_by_type(out, n))

    def _normalize_by_type(self, out: RoutingOutput, n: int) -> RoutingOutput:
        """Normalize poses and logits of layer n over the batch, if ``pose_norm`` is batch."""
        if self.config.pose_norm != "batch":
            return out
        types = [*(layer[0] for layer in self.config.capsule_layers), self.config.num_classes][n]
        pose, logit = (
            by_type(norm, x, types)
            for norm, x in zip(self.layer_norms[2 * n : 2 * n + 2], (out.pose, out.activation))
        )
        return out._replace(pose=pose, activation=jax.nn.sigmoid(logit))

    def _normalize_poses(self, out: RoutingOutput) -> Capsules:
        """Divide poses by their root mean square, if ``pose_norm`` is auto."""
        pose = out.pose
        if self.config.pose_norm == "auto" and self.classes.routing.traits.poses_are_means:
            wide = pose.astype(accumulator(pose.dtype))
            square = jnp.mean(jnp.square(wide), (1, 2), keepdims=True)
            pose = (wide * jax.lax.rsqrt(square + 1e-6)).astype(pose.dtype)
        return Capsules(pose, out.activation)

    def decode(self, pose: chex.Array, mask: chex.Array) -> jax.Array:
        """Reconstruct images ``[B, H, W, C]`` from class capsules.

        Args:
          pose: poses of the class capsules, ``[B, J, D]``.
          mask: factors of the poses, ``[B, J]``, usually 1 for one class and 0 for the others.
        """
        return self.decoder(jax.vmap(mask_capsules)(pose, mask))

    def __call__(
        self, images: chex.Array, labels: chex.Array | None = None, key: chex.PRNGKey | None = None
    ) -> Prediction:
        """Classify and reconstruct images.

        Args:
          images: ``[B, H, W, C]``, pixels in [0, 1].
          labels: ``[B]``. Images are reconstructed from the capsule of the label, as in training;
            if None, from the longest capsule. Scores and poses never depend on the labels.
          key: ignored; it is an argument because networks with dropout need it.
        """
        capsules = self.encode(images)
        if self.config.decoder is None:
            return Prediction(capsules.activation, capsules.pose)
        if labels is None:
            mask = jax.vmap(argmax_mask)(capsules.activation)
        else:
            mask = label_mask(labels, self.config.num_classes)
        return Prediction(capsules.activation, capsules.pose, self.decode(capsules.pose, mask))


def _activation(slope):
    """The ReLU, or the leaky one of this slope."""
    return functools.partial(jax.nn.leaky_relu, negative_slope=slope) if slope else jax.nn.relu
