"""CapsNet: convolution, primary capsules, routed capsules in one layer or more, decoder."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import initializers as init

from capsjax.conv_capsules import ConvCapsules
from capsjax.losses import argmax_mask, label_mask, mask_capsules
from capsjax.modules import (
    ACTIVATIONS,
    PADDINGS,
    Capsules,
    Conv,
    Decoder,
    PrimaryCapsules,
    RoutedCapsules,
)
from capsjax.precision import accumulator
from capsjax.routing import (
    GRADIENTS,
    Routing,
    RoutingOutput,
    Sweeps,
    check_choice,
    make,
    options_of,
)
from capsjax.squash import SQUASHES
from capsjax.votes import VOTES

SCHEDULES = ("sequential", "concurrent")
POSE_NORMS = ("auto", "none")
INITS = ("lecun", "official")


class Prediction(NamedTuple):
    """What every network says about a batch of images."""

    scores: jax.Array  # [B, J]; the largest is the predicted class
    pose: jax.Array | None = None  # [B, J, D] class capsules
    reconstruction: jax.Array | None = None  # [B, H, W, C] in [0, 1]


@dataclasses.dataclass(frozen=True)
class CapsNetConfig:
    """CapsNet of Sabour, Frosst & Hinton (2017), section 4, and what others made of it.

    The defaults are the paper's network for MNIST. ``init``, ``routing_bias`` and
    ``primary_scale`` are differences between the text and the authors' code. An option that the
    routing does not have (see :func:`capsjax.routing.options_of`) is not used.

    Raises:
      ValueError: an unknown name, or sizes that do not fit.
    """

    image_shape: tuple[int, int, int] = (28, 28, 1)  # height, width, channels
    num_classes: int = 10  # J
    conv_channels: int = 256
    conv_kernel: int = 9
    conv_stride: int = 1
    more_convs: tuple[tuple[int, int, int], ...] = ()  # channels, kernel, stride
    padding: str = "VALID"  # of convolutions and primary capsules; SAME: as large, by stride
    conv_norm: bool = False  # layer normalisation before the ReLU of each convolution
    primary_types: int = 32
    primary_pose: int = 8  # K
    primary_kernel: int = 9
    primary_stride: int = 2
    primary_depthwise: bool = False  # each channel has a filter of its own
    primary_activation: str = "length"  # of the pose, or sigmoid of a convolution
    coordinates: bool = False  # positions are added to the poses that class capsules see
    # Convolutional capsule layers between primary and class capsules: types, kernel, stride.
    # Their poses are as large as those of the class capsules.
    capsule_layers: tuple[tuple[int, int, int], ...] = ()
    layer_votes: str = "full"  # of those layers
    # Of poses between routed layers. auto: divided by their root mean square over the layer and
    # example where they are means of votes (em, vb, self, kde). none: never.
    pose_norm: str = "auto"
    class_pose: int = 16  # D
    votes: str = "full"  # of the class capsules
    squash: str = "auto"  # paper, unless the routing takes poses as they are
    routing: str = "dynamic"  # a name of capsjax.routing.ROUTINGS
    routing_iterations: int = 3  # R
    routing_prior: str = "zeros"  # or learned
    routing_schedule: str = "sequential"  # or concurrent: all layers in every iteration
    routing_gradient: str = "full"  # full, stop or last
    # auto, naive, stream or sweeps of one's own: how, not what, is computed
    routing_implementation: str | Sweeps = "auto"
    decoder: tuple[int, ...] | None = (512, 1024)  # hidden widths; None: no reconstruction
    init: str = "lecun"  # lecun, or official: truncated normals, biases 0.1
    routing_bias: bool = False  # learned bias of s_j, 0.1 at first
    primary_scale: float = 1.0  # factor on the primary capsules' weighted sums
    dtype: str = "float32"  # of convolutions, votes and decoder products

    def __post_init__(self):
        check_choice("padding", self.padding, PADDINGS)
        smallest, steps = 1, self._steps()
        if self.padding == "SAME":
            steps = steps[len(self.convs) + 1 :]
        for kernel, stride in reversed(steps):
            smallest = (smallest - 1) * stride + kernel
        height, width, _ = self.image_shape
        if min(height, width) < smallest:
            raise ValueError(
                f"image_shape: {height}x{width} pixels are too few for valid convolutions of "
                f"{', '.join(f'{k}x{k}' for k, _ in steps)}; "
                f"the smallest image is {smallest}x{smallest}"
            )
        check_choice("init", self.init, INITS)
        check_choice("routing_schedule", self.routing_schedule, SCHEDULES)
        check_choice("squash", self.squash, ("auto", *SQUASHES))
        check_choice("votes", self.votes, VOTES)
        check_choice("layer_votes", self.layer_votes, VOTES)
        check_choice("pose_norm", self.pose_norm, POSE_NORMS)
        routing = self.make_routing()
        check_choice("routing_gradient", self.routing_gradient, GRADIENTS)
        check_choice("primary_activation", self.primary_activation, ACTIVATIONS)
        channels = self.convs[-1][0], self.primary_types * self.primary_pose
        if self.primary_depthwise and channels[0] != channels[1]:
            raise ValueError(
                f"depthwise primary capsules need types times pose = {channels[0]} channels, not "
                f"{self.primary_types} * {self.primary_pose}"
            )
        if self.routing_schedule == "concurrent":
            if routing.field and self.capsule_layers:
                raise ValueError(f"routing {self.routing!r} has no concurrent schedule")
            if self.routing_gradient != "full":
                raise ValueError(
                    "the concurrent schedule has no other gradient than full, not "
                    f"{self.routing_gradient!r}"
                )
        pose = self.primary_pose
        for _ in self.capsule_layers:
            VOTES[self.layer_votes].shape(1, 1, self.class_pose, pose, 1)
            pose = self.class_pose
        VOTES[self.votes].shape(1, 1, self.class_pose, pose, 1)
        if self.coordinates and (pose < 4 or math.isqrt(pose) ** 2 != pose):
            raise ValueError(f"coordinates need poses that are square matrices, not {pose} numbers")

    def make_routing(self) -> Routing:
        """The routing algorithm, with the options that it has."""
        options = {
            "iterations": self.routing_iterations,
            "prior": self.routing_prior,
            "bias": self.routing_bias,
            "squash": "paper" if self.squash == "auto" else self.squash,
        }
        known = options_of(self.routing)
        return make(self.routing, **{k: v for k, v in options.items() if k in known})

    @property
    def primary_squash(self) -> str:
        """Squash of the primary capsules."""
        if self.squash != "auto":
            return self.squash
        return "paper" if self.make_routing().squashes else "none"

    @property
    def convs(self) -> tuple[tuple[int, int, int], ...]:
        """Channels, kernel and stride of all convolutions before the primary capsules."""
        return ((self.conv_channels, self.conv_kernel, self.conv_stride), *self.more_convs)

    @property
    def primary_grid(self) -> tuple[int, int]:
        """Height and width of the grid of primary capsules."""
        height, width = self.image_shape[:2]
        for kernel, stride in self._steps()[: len(self.convs) + 1]:
            lost = kernel - 1 if self.padding == "VALID" else 0
            height, width = (-(-(n - lost) // stride) for n in (height, width))
        return height, width

    @property
    def input_capsules(self) -> int:
        """Number I of primary capsules."""
        height, width = self.primary_grid
        return height * width * self.primary_types

    def _steps(self) -> list[tuple[int, int]]:
        """Kernel and stride of everything that moves over the image."""
        return [
            *(step[1:] for step in self.convs),
            (self.primary_kernel, self.primary_stride),
            *(step[1:] for step in self.capsule_layers),
        ]


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
        return self.classes.children(self._seen_by_classes(images)).votes

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
        if self.config.pose_norm == "auto" and self.classes.routing.means:
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


def concurrent(
    layers: list,
    x: Capsules,
    passed_on: Callable[[RoutingOutput], Capsules],
    before_last: Callable[[Capsules], Capsules],
) -> RoutingOutput:
    """Route all layers together (Tsai et al. 2020): the poses of a pass are inputs of the next.

    In the first pass layer after layer is computed from the one below. In every later one all
    layers step at once, each from the output that the layer below had after the pass before.

    Args:
      layers: routed capsule layers, lowest first. x: capsules below the first.
      passed_on: what the output of a layer is for the next.
      before_last: what happens to the capsules that the last layer sees.

    Returns:
      The output of the last layer, without couplings.
    """

    def seen(n, outputs):
        below = passed_on(outputs[n - 1]) if n else x
        return below if layers[n + 1 :] else before_last(below)

    states, outputs = [], []
    for n, layer in enumerate(layers):
        u = seen(n, outputs)
        states.append(layer.step(u, layer.start(u), 0))
        outputs.append(layer.output(states[n]))
    for t in range(1, layers[0].routing.passes):
        states = [layer.step(seen(n, outputs), states[n], t) for n, layer in enumerate(layers)]
        outputs = [layer.output(state) for layer, state in zip(layers, states)]
    return outputs[-1]
