"""Class capsules that are told the positions of their input capsules: coordinate addition."""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from capsjax.capsules import Capsules, as_capsules
from capsjax.modules import RoutedCapsules
from capsjax.routing import InputCapsules, RoutingOutput, run_routing


def side_with_coordinates(pose: int) -> int:
    """Return the side of square matrices that coordinates can be added to.

    Raises:
      ValueError: poses of this size are no square matrices of 2x2 or more numbers.
    """
    side = math.isqrt(pose)
    if side < 2 or side**2 != pose:
        raise ValueError(f"coordinates need poses that are square matrices, not {pose} numbers")
    return side


class PlacedCapsules(RoutedCapsules):
    r"""A routed layer that adds the position of each input capsule to its votes.

    .. math:: \hat U_{j|i} \leftarrow
              \hat U_{j|i} + \begin{pmatrix} & & y_i \\ & & x_i \\ & & \end{pmatrix}

    Hinton, Sabour & Frosst, "Matrix Capsules with EM Routing" (2018): votes are square matrices
    :math:`\hat U`, whose last column gets row and column of the capsule as its first two elements,
    so that a matrix shared by all positions can still say where things are. Votes are always kept
    in memory, whatever the implementation.

    Args:
      sizes: of :class:`RoutedCapsules`.
      places: the coordinates of the H rows and of the W columns of the grid of input capsules,
        whose I = H W T are numbered row by row, types last.
      others: further arguments of :class:`RoutedCapsules`.

    Raises:
      ValueError: the poses of the output capsules are no square matrices of 2x2 or more numbers.
    """

    def __init__(self, *sizes: int, places: tuple[tuple, tuple], **others):
        self.side = side_with_coordinates(sizes[3])
        super().__init__(*sizes, **others)
        self.places = tuple(map(tuple, places))

    def __call__(self, x: Capsules | chex.Array, *, trace: bool = False) -> RoutingOutput:
        """Route a batch of capsules, see :meth:`RoutedCapsules.__call__`."""
        params, gradient = self.params(), self.options["gradient"]

        def one(capsules: InputCapsules) -> Any:
            return run_routing(self.routing, params, capsules, gradient=gradient, trace=trace)

        return jax.vmap(one)(self.input_capsules(as_capsules(x)))

    def input_capsules(self, x: Capsules) -> InputCapsules:
        """Compute the votes ``[B, I, J, D]`` of a batch of input capsules, with their positions."""
        capsules = super().input_capsules(x)
        (rows, columns), (_, I, _, D) = self.places, capsules.votes.shape
        place = np.zeros((len(rows), len(columns), D), np.float32)
        place[..., self.side - 1] = np.asarray(rows)[:, None]
        place[..., 2 * self.side - 1] = np.asarray(columns)[None, :]
        types = I // (len(rows) * len(columns))
        added = jnp.asarray(np.repeat(place.reshape(-1, 1, D), types, 0), capsules.votes.dtype)
        return capsules._replace(votes=capsules.votes + added[None])
