r"""Passes over the input capsules that hold no votes: the mathematics.

The logits of iteration t are :math:`b_{ij} = b^0_{ij} + \hat u_{j|i} \cdot V_j`, with V the
sum of the outputs v of the earlier iterations. One iteration is therefore one *pass*,

.. math:: S_j = \textstyle\sum_i c_{ij} \hat u_{j|i}, \quad c_i = \mathrm{norm}(b_i)

which needs the votes of a few input capsules at a time. Only V and S outlive a pass, J * D
numbers per example. Differentiation computes coupling coefficients and votes once more. With
dS the gradient of the loss by S, one pass gives the gradient by V,

.. math::
   dc_{ij} = \hat u_{j|i} \cdot dS_j, \quad
   db_{ij} = c_{ij} (dc_{ij} - \textstyle\sum_k c_{ik} dc_{ik}), \quad
   dV_j = \textstyle\sum_i db_{ij} \hat u_{j|i}

(for both softmax and leaky) and a last one, for all iterations t together,

.. math::
   d\hat u_{j|i} = \textstyle\sum_t c^t_{ij} dS^t_j + db^t_{ij} V^t_j, \quad
   du_i = \textstyle\sum_j W_{ij}^T d\hat u_{j|i}, \quad
   dW_{ij} = d\hat u_{j|i} u_i^T, \quad
   db^0_{ij} = \textstyle\sum_t db^t_{ij}

Votes need not even exist for one capsule. With :math:`P_{ij} = W_{ij}^T V_j` and
:math:`Q_{ij} = W_{ij}^T dS_j`, vectors of the size of u_i,

.. math::
   \hat u_{j|i} \cdot V_j = u_i \cdot P_{ij}, \quad dc_{ij} = u_i \cdot Q_{ij}, \quad
   S_j = \textstyle\sum_i W_{ij} (c_{ij} u_i), \quad dV_j = \textstyle\sum_i W_{ij} (db_{ij} u_i)

.. math::
   du_i = \textstyle\sum_{jt} c^t_{ij} Q^t_{ij} + db^t_{ij} P^t_{ij}, \quad
   dW_{ij} = \textstyle\sum_t dS^t_j (c^t_{ij} u_i)^T + V^t_j (db^t_{ij} u_i)^T

These passes work on batches, not on one example: under ``vmap`` the gradient of the shared W would
be computed for every example. Components k of u come before capsules i, so sums over k are sums of
whole arrays, and the batch, along which vector units run, comes last. W is transposed only within
each input capsule, so a tile of it is contiguous, and all of it is a matrix of the even pass:

    u [K, I, B]   W [I, K, J, D]   prior [J, I]   V, S, dV, dS [J, D, B]
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from capsjax.backend import materialize
from capsjax.precision import accumulator
from capsjax.routing.base import InputCapsules, Routing
from capsjax.routing.passes import BatchedPasses, initial_routing_state
from capsjax.votes import prediction_vectors


class PassInputs(NamedTuple):
    """The arrays that routing is a function of, except the bias; also their gradients."""

    u: Any  # [K, I, B] outputs of the input capsules
    W: Any  # [I, K, J, D] transformation matrices
    prior: Any = None  # [J, I] initial logits; None for zero


class PassKernels(NamedTuple):
    """An implementation of routing: a pass, and two passes of its differentiation.

    Operands are multiplied in the type of W and accumulated in float32 (float64 for float64);
    S and V have the type of the accumulator. ``normalizer`` is softmax or leaky.
    """

    # (inputs, V, normalizer) -> S
    forward: Callable[..., jax.Array]
    # (inputs, V, dS, normalizer, input_grads) -> dV, input_grads. The gradients by the inputs are
    # those of the passes so far, None at first; None as a result leaves them to backward_inputs.
    backward_state: Callable[..., tuple[jax.Array, PassInputs | None]]
    # (inputs, V^t, dS^t, normalizer, constant) -> gradients by the inputs. The iterations are a
    # first axis of V^t and dS^t; if dS^t has one more, the last of them couples evenly (V = 0 and
    # no prior). With ``constant`` the coupling coefficients are constants, so db = 0.
    backward_inputs: Callable[..., PassInputs]
    # (u [B, I, K], W [I, J, D, K]) -> votes [B, I, J, D], for algorithms that can't run on the
    # passes. None: those algorithms are not supported.
    votes: Callable[..., jax.Array] | None = None


def even_coupling(J: int, normalizer: str) -> float:
    """Returns the coupling coefficient that zero logits give to each of J output capsules."""
    return 1 / (J + (normalizer == "leaky"))


def even_pass(inputs: PassInputs, normalizer: str) -> jax.Array:
    """Computes S ``[J, D, B]`` of the pass with even couplings: one matrix product."""
    wide = accumulator(inputs.u.dtype, inputs.W.dtype)
    total = jnp.einsum("kib,ikjd->bjd", inputs.u, inputs.W, preferred_element_type=wide)
    return even_coupling(total.shape[1], normalizer) * total.transpose(1, 2, 0)


def agreement_passes(
    routing: Routing, kernels: PassKernels, params: dict, u: jax.Array, W: jax.Array
) -> tuple[BatchedPasses, dict, PassInputs]:
    """Returns the passes, the parameters without prior, and the inputs of the streaming engine."""
    prior = params.get("prior")
    shared = {name: x for name, x in params.items() if name != "prior"}
    # Without this every loop that reads u would squash it again, and an optimizer would transpose
    # the gradient of W.
    u, W = materialize((u.transpose(2, 1, 0), W.transpose(0, 3, 1, 2)))
    inputs = PassInputs(u, W, None if prior is None else prior.T)
    normalizer, has_prior = routing.normalizer, prior is not None
    batch_last = functools.partial(jax.vmap, in_axes=-1, out_axes=-1)

    def start(params, inputs):
        wide = accumulator(inputs.u.dtype)
        W = inputs.W[:1].transpose(0, 2, 3, 1)

        def one(u):
            first = InputCapsules(prediction_vectors(u.T, W), u.T.astype(wide), jnp.ones(1, wide))
            return initial_routing_state(routing, params, first)

        return batch_last(one)(inputs.u[:, :1])

    def query(params, state, t):
        """Computes V ``[J, D, B]``; None for zero without a prior, which couples evenly."""
        V = batch_last(lambda state: routing.query(params, state, t))(state)
        if V is None and has_prior:
            shape = *inputs.W.shape[2:], inputs.u.shape[2]
            return jnp.zeros(shape, accumulator(inputs.W.dtype))
        return V

    def forward(params, inputs, state, t):
        V = query(params, state, t)
        if V is None:
            return even_pass(inputs, normalizer)
        return kernels.forward(inputs, V, normalizer)

    def backward_state(params, inputs, state, dS, t, input_grads):
        V, query_vjp = jax.vjp(lambda params, state: query(params, state, t), params, state)
        dV, input_grads = kernels.backward_state(inputs, V, dS, normalizer, input_grads)
        return *query_vjp(dV.astype(V.dtype)), input_grads

    def backward_inputs(params, inputs, passes, constant):
        Vs = [query(params, state, t) for t, state, _ in passes]
        dSs = jnp.stack([dS for _, _, dS in passes])
        zero = jax.tree.map(jnp.zeros_like, params)
        if Vs == [None]:
            # Without this u and W, transposed for these products, could be kept during all passes.
            inputs, dS = jax.lax.optimization_barrier((inputs, dSs[0]))
            return zero, jax.vjp(lambda x: even_pass(x, normalizer), inputs)[1](dS)[0]
        Vs = jnp.stack([V for V in Vs if V is not None])
        return zero, kernels.backward_inputs(inputs, Vs, dSs, normalizer, constant)

    return BatchedPasses(start, forward, backward_state, backward_inputs, -1), shared, inputs


def check_inputs(u: chex.Array, W: chex.Array, full: bool = True) -> None:
    """Raises AssertionError unless u ``[B, I, K]`` and W, ``[I, J, D, K]`` if full, agree."""
    chex.assert_rank(u, 3, custom_message="u must be [B, I, K]")
    for name, array in (("u", u), ("W", W)):
        if array.dtype not in (jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16):
            raise AssertionError(f"{name} must be of a floating type, not {array.dtype}")
    if u.dtype != W.dtype:
        raise AssertionError(f"u and W must be of one type, not {u.dtype} and {W.dtype}")
    if full:
        chex.assert_rank(W, 4, custom_message="W must be [I, J, D, K]")
        message = f"u must be [B, I, K] of W {W.shape}"
        chex.assert_shape(u, (None, W.shape[0], W.shape[3]), custom_message=message)
