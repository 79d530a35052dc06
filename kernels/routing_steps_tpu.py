"""Steps that the kernels of :mod:`kernels.routing_pass_tpu` share.

They read and write references to blocks in VMEM. ``weights_ref`` is c or db, ``[J, ib, 128]``.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from capsjax.routing import normalize
from kernels.blocks import dot


def zero_at_first_step(total_ref):
    """Sets a sum over the inner axis of the grid to zero before anything is added."""

    @pl.when(pl.program_id(1) == 0)
    def _():
        total_ref[...] = jnp.zeros(total_ref.shape, total_ref.dtype)


def set_coupling(c_ref, inputs_ref, V_ref, normalizer):
    _set_dots(c_ref, inputs_ref, V_ref)
    logits = c_ref[...]
    if inputs_ref.prior is not None:
        logits += jnp.broadcast_to(inputs_ref.prior[...].astype(logits.dtype), logits.shape)
    c_ref[...] = normalize(logits, normalizer, axis=0)


def set_logit_gradient(db_ref, c_ref, inputs_ref, dS_ref):
    _set_dots(db_ref, inputs_ref, dS_ref)
    mean = jnp.sum(c_ref[...] * db_ref[...], axis=0, keepdims=True)
    db_ref[...] = c_ref[...] * (db_ref[...] - jnp.broadcast_to(mean, db_ref.shape))


def _set_dots(out_ref, inputs_ref, y_ref):
    """out_ij = u_i . W_ij^T y_j."""
    u_ref, W_ref, _ = inputs_ref

    @_for_each(len(out_ref))
    def _(j):
        total = jnp.zeros(out_ref.shape[1:], out_ref.dtype)
        for k in range(len(u_ref)):
            total += u_ref[k].astype(out_ref.dtype) * dot(W_ref[j, k], y_ref[j], (0, 0))
        out_ref[j] = total


def add_weighted_votes(total_ref, inputs_ref, weights_ref):
    """total_j += sum_i W_ij (w_ij u_i)."""
    u_ref, W_ref, _ = inputs_ref

    @_for_each(len(total_ref))
    def _(j):
        for k in range(len(u_ref)):
            total_ref[j] += dot(W_ref[j, k], _times(weights_ref[j], u_ref[k]), (1, 0))


def add_products(dinputs_ref, inputs_ref, weights_ref, y_ref):
    """du_i += sum_j w_ij W_ij^T y_j, and dW_ij += y_j (w_ij u_i)^T."""
    (u_ref, W_ref, _), (du_ref, dW_ref, _) = inputs_ref, dinputs_ref

    @_for_each(len(weights_ref))
    def _(j):
        for k in range(len(u_ref)):
            du_ref[k] += weights_ref[j] * dot(W_ref[j, k], y_ref[j], (0, 0))
            dW_ref[j, k] += dot(y_ref[j], _times(weights_ref[j], u_ref[k]), (1, 1))


def _times(weights, u):
    """Returns capsules times their weights, in the type of the capsules."""
    return (weights * u.astype(weights.dtype)).astype(u.dtype)


def _for_each(count):
    """Returns a decorator that runs the function for j = 0 .. count-1."""
    return lambda body: jax.lax.fori_loop(0, count, lambda j, _: body(j), None)
