"""The convolutional capsule layer: routed capsules at every position of a grid."""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from capsjax.backend import backend, typical_size
from capsjax.capsules import Capsules, as_capsules
from capsjax.modules import RoutedCapsules
from capsjax.routing import (
    InputCapsules,
    RoutingOutput,
    field_index,
    over_field,
    run_routing,
)
from capsjax.routing.accelerated import divided
from capsjax.routing.engine import VOTES_BYTES
from capsjax.routing.mixture_field import route_field
from capsjax.routing.passes import hold_constants
from capsjax.votes import VOTES


class ConvCapsules(RoutedCapsules):
    """A convolutional capsule layer.

    Every position of the output grid routes the input capsules that it sees, a square of
    positions with all their types, to its own; all positions share parameters. Algorithms that
    are mixture models (EM, variational Bayes) let an input capsule compete for the output
    capsules at all positions that see it, see :func:`capsjax.routing.over_field`. They
    hold the votes of the batch, and with the implementation ``stream``, which ``auto`` is for votes
    of more than 8 MiB on one CPU device, those of one example at a time, with the backward rule of
    :mod:`capsjax.routing.mixture_field`.

    Args:
      grid_in: height and width (H, W) of the grid of input capsules.
      types_in: number T of types of input capsules.
      pose_in: pose size K of an input capsule.
      types_out: number J of types of output capsules.
      pose_out: pose size D of an output capsule.
      kernel: side of the square, in positions. There is no padding.
      stride: step of the square, in positions.
      others: further arguments of :class:`RoutedCapsules`.

    Raises:
      ValueError: the grid is smaller than the kernel, or the sizes do not fit the votes.
    """

    def __init__(
        self,
        grid_in: tuple[int, int],
        types_in: int,
        pose_in: int,
        types_out: int,
        pose_out: int,
        kernel: int,
        stride: int = 1,
        **others,
    ):
        if min(grid_in) < kernel:
            raise ValueError(f"a grid of {grid_in} capsules is too small for {kernel}x{kernel}")
        capsules_in = kernel * kernel * types_in
        super().__init__(capsules_in, pose_in, types_out, pose_out, types=types_in, **others)
        self.grid_in, self.types_in, self.size, self.stride = grid_in, types_in, kernel, stride
        self.grid = tuple((n - kernel) // stride + 1 for n in grid_in)
        self.numbers_out = types_out * pose_out  # of a position

    def __call__(self, x: Capsules | chex.Array, *, trace: bool = False) -> RoutingOutput:
        """Map capsules ``[B, H W T, K]`` to ``[B, H' W' J, D]``, positions row by row.

        Args:
          x: poses ``[B, H W T, K]`` and activations ``[B, H W T]``, or an array of poses alone.
          trace: see :func:`capsjax.routing.route`.

        Returns:
          The output of the routing, with couplings ``[B, H' W', k k T, J]`` or without any.
        """
        x = as_capsules(x)
        seen = self._patches(x)
        if not self.routing.traits.compete_across_positions:
            out = super().__call__(_fold(seen), trace=trace)
            return self._unfold(out, x.pose.shape[0])
        out = self._route_field(seen, trace)
        pose = jax.lax.collapse(out.pose, 1, out.pose.ndim - 1)
        activation = jax.lax.collapse(out.activation, 1)
        return out._replace(pose=pose, activation=activation)

    def _route_field(self, seen: Capsules, trace: bool) -> RoutingOutput:
        """Route what all positions see, ``[B, P, I, K]``, as one mixture model per example."""
        index = field_index(self.grid_in, self.types_in, self.size, self.stride)
        params = hold_constants(self.routing, self.params())
        gradient, implementation = self.options["gradient"], self.options["implementation"]
        if implementation == "auto" and self._streams(seen.pose.shape[0], index.size):
            implementation = "stream"
        if trace or implementation != "stream" or self.routing.gaussians is None:
            routing = over_field(self.routing, index)

            def one(capsules):
                return run_routing(routing, params, capsules, gradient=gradient, trace=trace)

            return jax.vmap(one)(jax.vmap(super().input_capsules)(seen))
        W, (I, K) = self.kernel[...].astype(self.dtype), seen.pose.shape[2:]
        matrices = VOTES[self.votes].matrices(W, I, K).transpose(0, 3, 2, 1)
        pose = seen.pose.astype(self.dtype)
        return route_field(self.routing, params, pose, seen.activation, matrices, index, gradient)

    def _streams(self, batch: int, capsules: int) -> bool:
        """Return whether ``auto`` is ``stream``, for the number of capsules that positions see.

        It is on one CPU device, outside meshes, for votes that leave the cache.
        """
        large = 4 * typical_size(batch) * capsules * self.numbers_out > VOTES_BYTES["cpu"]
        alone = jax.sharding.get_abstract_mesh().empty and not divided()
        return large and backend() == "cpu" and alone

    def input_capsules(self, x: Capsules) -> InputCapsules:
        """What each position sees, positions as further examples."""
        return super().input_capsules(_fold(self._patches(x)))

    def output(self, state: Any) -> RoutingOutput:
        """Compute the poses ``[B, H' W' J, D]`` and activations of a state."""
        out = super().output(state)
        return self._unfold(out, out.pose.shape[0] // (self.grid[0] * self.grid[1]))

    def _patches(self, x: Capsules) -> Capsules:
        """Gather the capsules that each position sees, with poses ``[B, P, k k T, K]``."""
        (H, W), k, s, (h, w) = self.grid_in, self.size, self.stride, self.grid
        seen = (None, H * W * self.types_in)
        chex.assert_shape([x.pose, x.activation], [(*seen, None), seen])

        def gather(x):
            x = x.reshape(x.shape[0], H, W, self.types_in, *x.shape[2:])
            parts = [
                x[:, i : i + s * (h - 1) + 1 : s, j : j + s * (w - 1) + 1 : s]
                for i in range(k)
                for j in range(k)
            ]
            x = jnp.concatenate(parts, axis=3)
            return x.reshape(x.shape[0], h * w, *x.shape[3:])

        return Capsules(gather(x.pose), gather(x.activation))

    def _unfold(self, out: RoutingOutput, batch: int) -> RoutingOutput:
        """Undo :func:`_fold`: make the capsules of all positions those of one layer."""
        positions = self.grid[0] * self.grid[1]
        coupling = out.coupling
        if coupling is not None:
            coupling = coupling.reshape(batch, positions, *coupling.shape[1:])
        _, J, D = out.pose.shape
        pose = out.pose.reshape(batch, positions * J, D)
        activation = out.activation.reshape(batch, positions * J)
        aux = out.aux
        if aux is not None:
            aux = jax.tree.map(
                lambda x: x.reshape(batch, positions, *x.shape[1:]).swapaxes(1, 2), aux
            )
        return RoutingOutput(pose, activation, coupling, aux)


def _fold(seen: Capsules) -> Capsules:
    """Make positions further examples of the batch."""
    return jax.tree.map(lambda x: jax.lax.collapse(x, 0, 2), seen)
