r"""Votes: what each input capsule predicts for each output capsule.

How votes depend on the pose of an input capsule is a choice independent of the routing. Every map
is a function of one example, ``(u [I, K], W) -> votes [I, J, D]``, float32 or wider; inputs of half
precision are multiplied in that precision and accumulated in float32.
"""

import dataclasses
import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from capsjax.precision import accumulator


def prediction_vectors(u: chex.Array, W: chex.Array) -> jax.Array:
    r"""Multiply each pose by a matrix of the pair of capsules: :math:`\hat u_{j|i} = W_{ij} u_i`.

    Equation 2 (right) of Sabour, Frosst & Hinton (2017).

    Args:
      u: outputs of the input capsules, ``[I, K]``.
      W: transformation matrices, ``[I, J, D, K]``.

    Returns:
      Votes ``[I, J, D]``.

    Raises:
      AssertionError: the ranks are not 2 and 4, or the sizes I and K do not agree.
    """
    chex.assert_rank([u, W], [2, 4])
    I, J, D, K = W.shape
    chex.assert_shape(u, (I, K), custom_message=f"u must be [I, K] of W [I, J, D, K] = {W.shape}")
    return _einsum("ijdk,ik->ijd", W, u)


def shared_votes(u: chex.Array, W: chex.Array) -> jax.Array:
    r"""Multiply each pose by a matrix of the output capsule: :math:`\hat u_{j|i} = W_j u_i`.

    Gu & Tresp, "Improving the Robustness of Capsule Networks to Image Affine Transformations"
    (2020). There are I times fewer parameters than with a matrix for every pair, and input capsules
    differ only by their poses.

    Args:
      u: outputs of the input capsules, ``[I, K]``.
      W: transformation matrices, ``[J, D, K]``.
    """
    chex.assert_rank([u, W], [2, 3])
    chex.assert_shape(u, (None, W.shape[2]), custom_message=f"u must be [I, K] of W {W.shape}")
    return _einsum("jdk,ik->ijd", W, u)


def conv_votes(u: chex.Array, W: chex.Array) -> jax.Array:
    r"""Multiply each pose by a matrix of its capsule type, shared by all positions of the grid.

    :math:`\hat u_{j|i} = W_{\tau(i) j} u_i` with the type :math:`\tau(i) = i \bmod T`: the types at
    one position are consecutive, as in :class:`~capsjax.primary_capsules.PrimaryCapsules`.

    Args:
      u: outputs of the input capsules, ``[I, K]``, I a multiple of T.
      W: transformation matrices, ``[T, J, D, K]``.
    """
    chex.assert_rank([u, W], [2, 4])
    T, J, D, K = W.shape
    chex.assert_shape(u, (None, K), custom_message=f"u must be [I, K] of W {W.shape}")
    grid = u.reshape(-1, T, K)
    return _einsum("tjdk,ptk->ptjd", W, grid).reshape(u.shape[0], J, D)


def matrix_votes(u: chex.Array, W: chex.Array) -> jax.Array:
    r"""Multiply poses that are square matrices: :math:`\hat U_{j|i} = U_i W_{ij}`.

    Hinton, Sabour & Frosst, "Matrix Capsules with EM Routing" (2018). A pair of capsules has P^2
    parameters, where a full matrix has P^4.

    Args:
      u: outputs of the input capsules, ``[I, K]``, row by row, K = P^2.
      W: transformation matrices, ``[I, J, P, P]``.
    """
    chex.assert_rank([u, W], [2, 4])
    I, J, P, _ = W.shape
    chex.assert_shape(W, (I, J, P, P))
    chex.assert_shape(u, (I, P * P), custom_message=f"u must be [I, P P] of W {W.shape}")
    return _einsum("ixy,ijyz->ijxz", u.reshape(I, P, P), W).reshape(I, J, P * P)


def conv_matrix_votes(u: chex.Array, W: chex.Array) -> jax.Array:
    r"""Multiply square matrices by one of the capsule type.

    :math:`\hat U_{j|i} = U_i W_{\tau(i) j}`, as in the class capsules of Hinton, Sabour & Frosst
    (2018). See :func:`conv_votes` for the types.

    Args:
      u: outputs of the input capsules, ``[I, K]``, row by row, K = P^2, I a multiple of T.
      W: transformation matrices, ``[T, J, P, P]``.
    """
    chex.assert_rank([u, W], [2, 4])
    T, J, P, _ = W.shape
    chex.assert_shape(W, (T, J, P, P))
    chex.assert_shape(u, (None, P * P), custom_message=f"u must be [I, P P] of W {W.shape}")
    grid = u.reshape(-1, T, P, P)
    return _einsum("tjyz,ptxy->ptjxz", W, grid).reshape(u.shape[0], J, P * P)


def elementwise_votes(u: chex.Array, W: chex.Array) -> jax.Array:
    r"""Multiply poses by weights, component by component: :math:`\hat u_{j|i} = w_{ij} \odot u_i`.

    Byerly, Kalganova & Dear, "No Routing Needed Between Capsules" (2021), whose homogeneous
    vector capsules use it with uniform routing.

    Args:
      u: outputs of the input capsules, ``[I, K]``.
      W: weights, ``[I, J, K]``.
    """
    chex.assert_rank([u, W], [2, 3])
    shape = W.shape[0], W.shape[2]
    chex.assert_shape(u, shape, custom_message=f"u must be [I, K] of W {W.shape}")
    wide = accumulator(u.dtype, W.dtype)
    return W.astype(wide) * u[:, None].astype(wide)


@dataclasses.dataclass(frozen=True)
class Votes:
    """A map from poses to votes: its name, its function and the shape of its parameters."""

    name: str
    function: Callable[[jax.Array, jax.Array], jax.Array]
    # (I, J, D, K, T) -> shape of W, where T is the number of capsule types at a position. Raises
    # ValueError if the sizes do not fit.
    shape: Callable[[int, int, int, int, int], tuple[int, ...]]
    per_input_capsule: bool  # W has a first axis I
    by_types: bool = False  # W has a first axis T
    near_identity: bool = False  # layers add the identity to the initial W

    def matrices(self, W: jax.Array, capsules: int, pose: int) -> jax.Array:
        """Return the matrices ``[I, J, D, K]`` whose products with the poses are the votes."""
        units = jnp.broadcast_to(jnp.eye(pose, dtype=W.dtype)[:, None], (pose, capsules, pose))
        return jnp.moveaxis(jax.vmap(self.function, (0, None))(units, W), 0, -1)

    def unit(self, W: jax.Array) -> int:
        """Return the number of input capsules of which a block must hold a multiple."""
        return W.shape[0] if self.by_types else 1


def _same_pose(name, D, K):
    if D != K:
        raise ValueError(f"votes {name!r} keep the pose size: {K} can't become {D}")


def _matrix_shape(I, J, D, K, T):
    _same_pose("matrix", D, K)
    side = math.isqrt(K)
    if side * side != K:
        raise ValueError(f"votes 'matrix' need poses of a square number of components, not {K}")
    return I, J, side, side


def _conv_matrix_shape(I, J, D, K, T):
    return _matrix_shape(T, J, D, K, T)


def _elementwise_shape(I, J, D, K, T):
    _same_pose("elementwise", D, K)
    return I, J, K


VOTES = {
    v.name: v
    for v in (
        Votes("full", prediction_vectors, lambda I, J, D, K, T: (I, J, D, K), True),
        Votes("shared", shared_votes, lambda I, J, D, K, T: (J, D, K), False),
        Votes("conv", conv_votes, lambda I, J, D, K, T: (T, J, D, K), False, by_types=True),
        Votes("matrix", matrix_votes, _matrix_shape, True, near_identity=True),
        Votes(
            "conv_matrix",
            conv_matrix_votes,
            _conv_matrix_shape,
            False,
            by_types=True,
            near_identity=True,
        ),
        Votes("elementwise", elementwise_votes, _elementwise_shape, True),
    )
}


def _einsum(spec, *arrays):
    wide = accumulator(*(x.dtype for x in arrays))
    return jnp.einsum(spec, *arrays, preferred_element_type=wide)
