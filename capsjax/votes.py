"""Prediction vectors: what each input capsule predicts for each output capsule."""

import chex
import jax
import jax.numpy as jnp

from capsjax.precision import accumulator


def prediction_vectors(u: chex.Array, W: chex.Array) -> jax.Array:
    r"""Votes of all input capsules for all output capsules, for one example.

    .. math:: \hat u_{j|i} = W_{ij} u_i

    Equation 2 (right) of Sabour, Frosst & Hinton (2017). Half-precision inputs are
    multiplied as they are and accumulated in float32.

    Args:
      u: outputs of the input capsules, ``[I, K]``.
      W: transformation matrices, ``[I, J, D, K]``.

    Returns:
      Votes ``[I, J, D]``, float32 or wider.

    Raises:
      AssertionError: the ranks or the sizes I and K do not agree.
    """
    chex.assert_rank([u, W], [2, 4])
    I, J, D, K = W.shape
    chex.assert_shape(u, (I, K), custom_message=f"u must be [I, K] of W [I, J, D, K] = {W.shape}")
    wide = accumulator(u.dtype, W.dtype)
    return jnp.einsum("ijdk,ik->ijd", W, u, preferred_element_type=wide)
