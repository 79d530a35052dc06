r"""Routing as sweeps over the input capsules, without holding their votes: the mathematics.

The logits of iteration t are :math:`b_{ij} = b^0_{ij} + \hat u_{j|i} \cdot V_j`, with V the
sum of the outputs v of the earlier iterations. One iteration is therefore one *sweep*,

.. math:: S_j = \textstyle\sum_i c_{ij} \hat u_{j|i}, \quad c_i = \mathrm{norm}(b_i)

which needs the votes of a few input capsules at a time. What outlives a sweep is V and S, J * D
numbers an example. The backward pass computes coupling coefficients and votes once more. With
dS the gradient of the loss by S, one sweep gives the gradient by V,

.. math::
   dc_{ij} = \hat u_{j|i} \cdot dS_j, \quad
   db_{ij} = c_{ij} (dc_{ij} - \textstyle\sum_k c_{ik} dc_{ik}), \quad
   dV_j = \textstyle\sum_i db_{ij} \hat u_{j|i}

(for softmax and leaky alike) and a last one, for all iterations t together,

.. math::
   d\hat u_{j|i} = \textstyle\sum_t c^t_{ij} dS^t_j + db^t_{ij} V^t_j, \quad
   du_i = \textstyle\sum_j W_{ij}^T d\hat u_{j|i}, \quad
   dW_{ij} = d\hat u_{j|i} u_i^T, \quad
   db^0_{ij} = \textstyle\sum_t db^t_{ij}

Votes need not exist even for one capsule. With :math:`P_{ij} = W_{ij}^T V_j` and
:math:`Q_{ij} = W_{ij}^T dS_j`, vectors of the size of u_i,

.. math::
   \hat u_{j|i} \cdot V_j = u_i \cdot P_{ij}, \quad dc_{ij} = u_i \cdot Q_{ij}, \quad
   S_j = \textstyle\sum_i W_{ij} (c_{ij} u_i), \quad dV_j = \textstyle\sum_i W_{ij} (db_{ij} u_i)

.. math::
   du_i = \textstyle\sum_{jt} c^t_{ij} Q^t_{ij} + db^t_{ij} P^t_{ij}, \quad
   dW_{ij} = \textstyle\sum_t dS^t_j (c^t_{ij} u_i)^T + V^t_j (db^t_{ij} u_i)^T

Sweeps work on batches, not on one example: under ``vmap`` the gradient of the shared W would
be made for every example. Components k come before capsules i, so that sums over k are sums
of whole arrays, and the batch, along which vector units run, comes last:

    u [K, I, B]   W [J, K, D, I]   prior [J, I]   V, S, dV, dS [J, D, B]
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from capsjax.precision import accumulator


class Inputs(NamedTuple):
    """What routing is a function of, besides the bias; also its gradients."""

    u: Any  # [K, I, B] outputs of the input capsules
    W: Any  # [J, K, D, I] transformation matrices
    prior: Any = None  # [J, I] first logits; None for zero


class Sweeps(NamedTuple):
    """An implementation of routing: three sweeps.

    Operands are multiplied in the type of W and accumulated in float32 (float64 for float64);
    S and V are of that type. ``normalizer`` is softmax or leaky.
    """

    # (inputs, V, normalizer) -> S
    forward: Callable[..., jax.Array]
    # (inputs, V, dS, normalizer) -> dV
    backward_state: Callable[..., jax.Array]
    # (inputs, V^t, dS^t, normalizer, constant) -> Inputs. The iterations are a first axis of V^t
    # and dS^t; if dS^t has one more, the last of them couples evenly (V = 0 and no prior).
    # constant: the coupling coefficients are, so that db = 0.
    backward_inputs: Callable[..., Inputs]


def even_coupling(parents: int, normalizer: str) -> float:
    """The coupling coefficient that zero logits give to each of J parents."""
    return 1 / (parents + (normalizer == "leaky"))


def even_sweep(inputs: Inputs, normalizer: str) -> jax.Array:
    """The sweep with even coupling, S ``[J, D, B]``: one matrix product."""
    wide = accumulator(inputs.u.dtype, inputs.W.dtype)
    total = jnp.einsum("jkdi,kib->jdb", inputs.W, inputs.u, preferred_element_type=wide)
    return even_coupling(inputs.W.shape[0], normalizer) * total


def check_inputs(u: chex.Array, W: chex.Array, prior: chex.Array | None) -> None:
    """Raise AssertionError unless u ``[B, I, K]``, W ``[I, J, D, K]``, prior ``[I, J]`` agree."""
    for name, array, letters in (("u", u, "BIK"), ("W", W, "IJDK")):
        axes = f"[{', '.join(letters)}]"
        chex.assert_rank(array, len(letters), custom_message=f"{name} must be {axes}")
        if array.dtype not in (jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16):
            raise AssertionError(f"{name} must be of a floating type, not {array.dtype}")
    I, J, _, K = W.shape
    chex.assert_shape(u, (None, I, K), custom_message=f"u must be [B, I, K] of W {W.shape}")
    if u.dtype != W.dtype:
        raise AssertionError(f"u and W must be of one type, not {u.dtype} and {W.dtype}")
    if prior is not None:
        chex.assert_shape(prior, (I, J), custom_message=f"prior must be [I, J] of W {W.shape}")
