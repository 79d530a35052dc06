"""Flax NNX modules around the equations. They own parameters and nothing else.

Modules take a batch. They hold no random state and no running statistics, so that
:mod:`capsjax.functional` can treat them as pure functions of their parameters.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import nnx

from capsjax.conv import conv2d, depthwise_conv2d
from capsjax.precision import accumulator
from capsjax.routing import (
    InputCapsules,
    PassKernels,
    Routing,
    RoutingOutput,
    Sizes,
    check_choice,
    dynamic,
    initial_routing_state,
    route,
    routing_pass,
)
from capsjax.routing.passes import hold_constants
from capsjax.squash import no_squash, safe_norm, squash, squash_by_name
from capsjax.votes import VOTES

Initializer = jax.nn.initializers.Initializer
LECUN_NORMAL = jax.nn.initializers.lecun_normal()
ACTIVATIONS = ("length", "sigmoid")
PADDINGS = ("VALID", "SAME")
NORMAL = jax.nn.initializers.normal(0.1)


class Conv(nnx.Module):
    """2-D convolution with a square kernel, computed by :func:`capsjax.conv.conv2d`.

    Args:
      channels_in: C. channels_out: O.
      kernel: side k of the kernel in pixels. stride: step in pixels.
      padding: ``VALID`` (none) or ``SAME`` (zeros, so that the output has the size of the input
        divided by the stride, rounded up; an odd row or column of zeros comes last).
      scale: factor on the weighted sum before the bias.
      depthwise: every output channel sees the input channel of its number alone, O = C; the
        kernel is ``[k, k, 1, C]``.
      kernel_init, bias_init: initialisers of kernel ``[k, k, C, O]`` and bias ``[O]``.
      dtype: computation type; parameters stay float32.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: str = "VALID",
        scale: float = 1.0,
        depthwise: bool = False,
        kernel_init: Initializer = LECUN_NORMAL,
        bias_init: Initializer = jax.nn.initializers.zeros,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_choice("padding", padding, PADDINGS)
        if depthwise and channels_in != channels_out:
            raise ValueError(f"depthwise: {channels_in} channels can't become {channels_out}")
        shape = (kernel, kernel, 1 if depthwise else channels_in, channels_out)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(bias_init(rngs.params(), (channels_out,), jnp.float32))
        self.stride, self.padding, self.scale, self.dtype = stride, padding, scale, dtype
        self.depthwise = depthwise

    def __call__(self, x: chex.Array) -> jax.Array:
        """Map ``[B, H, W, C]`` to ``[B, H', W', O]``."""
        kernel = self.kernel[...]
        if self.padding == "SAME":
            widths = []
            for size in x.shape[1:3]:
                zeros = (-(-size // self.stride) - 1) * self.stride + kernel.shape[0] - size
                low = max(zeros, 0) // 2
                widths.append((low, max(zeros, 0) - low))
            x = jnp.pad(x, ((0, 0), *widths, (0, 0)))
        convolve = depthwise_conv2d if self.depthwise else conv2d
        y = convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)
        # In float32, because the gradient of the bias is a sum over all pixels.
        y = self.scale * y.astype(accumulator(y.dtype)) + self.bias[...][None, None, None]
        return y.astype(self.dtype)


class Capsules(NamedTuple):
    """The capsules of a layer, for a batch."""

    pose: jax.Array  # [B, I, K]
    activation: jax.Array  # [B, I]


class PrimaryCapsules(nnx.Module):
    """The lowest capsule layer: a convolution whose channels are cut into pose vectors.

    Neighbouring channels form a capsule: channel ``type * pose + k`` is component k of
    the capsule of that type, at every position of the grid.

    Args:
      channels_in: channels of the feature map. types: capsule types.
      pose: pose size K. kernel, stride: of the convolution, in pixels.
      squash: of the poses, a name of :data:`capsjax.squash.SQUASHES`.
      activation: ``length`` of the squashed pose, whether or not the pose itself is, or
        ``sigmoid`` of a second convolution (Hinton, Sabour & Frosst 2018).
      depthwise: see :class:`Conv` (Efficient-CapsNet, Mazzia et al. 2021).
      conv: further arguments of :class:`Conv`.
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
        **conv,
    ):
        check_choice("activation", activation, ACTIVATIONS)
        self.conv = Conv(
            channels_in, types * pose, kernel, stride=stride, depthwise=depthwise, **conv
        )
        if activation == "sigmoid":
            self.present = Conv(channels_in, types, kernel, stride=stride, **conv)
        self.pose, self.squash, self.activation = pose, squash_by_name(squash), activation

    def __call__(self, x: chex.Array) -> Capsules:
        """Map a feature map ``[B, H, W, C]`` to capsules ``[B, I, K]``, I = H' W' types."""
        features = self.conv(x)
        pose = self.squash(features.reshape(features.shape[0], -1, self.pose))
        if self.activation == "length":
            bounded = squash(pose) if self.squash is no_squash else pose
            return Capsules(pose, safe_norm(bounded))
        present = self.present(x).astype(pose.dtype)
        return Capsules(pose, jax.nn.sigmoid(present.reshape(present.shape[0], -1)))


class RoutedCapsules(nnx.Module):
    """A capsule layer whose inputs are coupled to its outputs by routing.

    Args:
      capsules_in: I. pose_in: K. capsules_out: J. pose_out: D.
      routing: the algorithm, by default dynamic routing with three iterations.
      votes: a name of :data:`capsjax.votes.VOTES`. types: T of votes that share by type.
      gradient, implementation: see :func:`capsjax.routing.route`.
      kernel_init: initialiser of the parameters of the votes, ``[I, J, D, K]`` for full ones;
        those of matrices are added to the identity.
      dtype: type in which votes are multiplied (they are summed in float32).

    Raises:
      ValueError: the votes do not fit the sizes.
    """

    def __init__(
        self,
        capsules_in: int,
        pose_in: int,
        capsules_out: int,
        pose_out: int,
        *,
        routing: Routing | None = None,
        votes: str = "full",
        types: int = 1,
        gradient: str = "full",
        implementation: str | PassKernels = "auto",
        kernel_init: Initializer = NORMAL,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        routing = routing or dynamic()
        sizes = Sizes(capsules_in, capsules_out, pose_out, pose_in)
        shape = VOTES[votes].shape(*sizes, types)
        key = rngs.params()
        if routing.for_sizes is not None:
            routing = routing.for_sizes(sizes)
        kernel = kernel_init(key, shape, jnp.float32)
        if "matrix" in votes:
            kernel += jnp.eye(shape[-1], dtype=kernel.dtype)[None, None]
        else:
            kernel *= routing.traits.init_scale(sizes)
        self.kernel = nnx.Param(kernel)
        params = routing.init_params(jax.random.fold_in(key, 1), sizes)
        for name, value in params.items():
            setattr(self, name, nnx.Param(value.astype(jnp.float32)))
        self.names, self.routing, self.votes, self.dtype = tuple(params), routing, votes, dtype
        self.options = {"gradient": gradient, "implementation": implementation}

    def __call__(self, x: Capsules, *, trace: bool = False) -> RoutingOutput:
        """Map capsules to a batch of :class:`RoutingOutput`.

        Args:
          x: capsules ``[B, I, K]``. trace: see :func:`capsjax.routing.route`.
        """
        u, W = x.pose.astype(self.dtype), self.kernel[...].astype(self.dtype)
        options = self.options | {"votes": self.votes, "trace": trace}
        return route(self.routing, self.params(), u, W, x.activation, **options)

    def params(self) -> dict[str, jax.Array]:
        """Parameters of the routing."""
        return {name: getattr(self, name)[...] for name in self.names}

    # Pass by pass, for networks whose layers are routed together.

    def input_capsules(self, x: Capsules) -> InputCapsules:
        """Computes the votes of a batch of input capsules."""
        W = self.kernel[...].astype(self.dtype)
        votes = jax.vmap(VOTES[self.votes].function, (0, None))(x.pose.astype(self.dtype), W)
        return InputCapsules(votes, x.pose.astype(votes.dtype), x.activation.astype(votes.dtype))

    def start(self, x: Capsules) -> Any:
        """The state before the first pass."""
        params = hold_constants(self.routing, self.params())
        return jax.vmap(lambda one: initial_routing_state(self.routing, params, one))(
            self.input_capsules(x)
        )

    def step(self, x: Capsules, state: Any, t: int) -> Any:
        """The state after pass t."""
        params = hold_constants(self.routing, self.params())
        return jax.vmap(lambda one, state: routing_pass(self.routing, params, one, state, t)[0])(
            self.input_capsules(x), state
        )

    def output(self, state: Any) -> RoutingOutput:
        """Poses and activations of a state."""
        return RoutingOutput(*jax.vmap(self.routing.finalize, (None, 0))(self.params(), state))


class Decoder(nnx.Module):
    """Fully connected layers that draw an image from masked capsules.

    Args:
      inputs: J * D numbers. hidden: widths of the ReLU layers.
      image_shape: (H, W, C) of the image, whose pixels come out of a sigmoid.
      linear: further arguments of ``nnx.Linear``.
    """

    def __init__(
        self, inputs: int, hidden: Sequence[int], image_shape: tuple[int, int, int], **linear
    ):
        height, width, channels = image_shape
        sizes = (inputs, *hidden, height * width * channels)
        self.layers = nnx.List(nnx.Linear(m, n, **linear) for m, n in zip(sizes, sizes[1:]))
        self.image_shape = image_shape

    def __call__(self, capsules: chex.Array) -> jax.Array:
        """Map masked capsules ``[B, J, D]`` to images ``[B, H, W, C]`` in [0, 1]."""
        x = capsules.reshape(capsules.shape[0], -1)
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        pixels = jax.nn.sigmoid(self.layers[-1](x).astype(jnp.float32))
        return pixels.reshape(-1, *self.image_shape)
