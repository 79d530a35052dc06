"""The pass kernels of routing in plain JAX: a loop over tiles of input capsules.

They run on any backend. The equations, and the letters P, Q, dc, db, are those of
:mod:`capsjax.routing.agreement`; here they are written for one tile of n input capsules,
u ``[K, n, B]`` and W ``[J, K, n, D]``, as matrix products with all output capsules at once.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from capsjax.backend import materialize, typical_size
from capsjax.precision import accumulator
from capsjax.routing.agreement import PassInputs, PassKernels, even_coupling
from capsjax.routing.normalizers import normalize

# Size of the largest array of a tile, [J, K, n, B]. Measured on CPU: smaller tiles make short
# matrix products, larger ones gain little and need more memory.
TILE_BYTES = 5 * 2**19
MOST_TERMS = 32  # in a sum that is written out
NO_INPUTS = PassInputs(None, None, None)


def forward(inputs: PassInputs, V: jax.Array, normalizer: str) -> jax.Array:
    """Computes S ``[J, D, B]``; see :class:`~capsjax.routing.agreement.PassKernels`."""

    def add(S, tile):
        c, _ = _coupling(tile, V, normalizer)
        return S + _combine(tile, _times(c, tile.u)), NO_INPUTS

    return _over_tiles(add, jnp.zeros_like(V), inputs, NO_INPUTS)[0]


def backward_state(
    inputs: PassInputs,
    V: jax.Array,
    dS: jax.Array,
    normalizer: str,
    input_grads: PassInputs | None,
) -> tuple[jax.Array, PassInputs]:
    """Computes dV ``[J, D, B]`` and, from the same P and Q, the gradients by the inputs."""

    def add(dV, tile):
        gradients, weighted = _pass(tile, V, dS, normalizer)
        return dV + _combine(tile, weighted), gradients

    if input_grads is None:
        input_grads = jax.tree.map(lambda x: jnp.zeros(x.shape, accumulator(x.dtype)), inputs)
    return _over_tiles(add, jnp.zeros_like(V), inputs, input_grads)


def backward_inputs(
    inputs: PassInputs, Vs: jax.Array, dSs: jax.Array, normalizer: str, constant: bool
) -> PassInputs:
    """Computes the gradients by the inputs; see :class:`~capsjax.routing.agreement.PassKernels`."""

    def one(_, tile):
        parts = [_pass(tile, V, dS, normalizer, constant)[0] for V, dS in zip(Vs, dSs)]
        parts += [_even_pass(tile, dS, normalizer) for dS in dSs[len(Vs) :]]
        return None, jax.tree.map(lambda *x: sum(x), *parts)

    return _over_tiles(one, None, inputs, jax.tree.map(jnp.zeros_like, inputs))[1]


STREAM = PassKernels(forward, backward_state, backward_inputs)


def _pass(tile, V, dS, normalizer, constant=False):
    """Computes the gradients by a tile in one pass, and db_ij u_i unless couplings are constant."""
    c, P = _coupling(tile, V, normalizer)
    Q = _project(tile, dS)
    du, dW = _sum(c[:, None] * Q, axis=0), _outer(dS, _times(c, tile.u))
    dprior = None if tile.prior is None else jnp.zeros_like(tile.prior)
    if constant:
        return PassInputs(du, dW, dprior), None
    dc = _dot(tile.u, Q)
    db = materialize(c * (dc - jnp.sum(c * dc, axis=0, keepdims=True)))
    weighted = _times(db, tile.u)
    du += _sum(db[:, None] * P, axis=0)
    dW += _outer(V, weighted)
    if dprior is not None:
        dprior += jnp.sum(db, axis=2)
    return PassInputs(du, dW, dprior), weighted


def _even_pass(tile, dS, normalizer):
    """Computes the gradients by a tile in a pass with even couplings, whatever the prior."""
    Q = _project(tile, dS)
    u = jnp.broadcast_to(tile.u[None], Q.shape)
    even = even_coupling(len(dS), normalizer)
    dprior = None if tile.prior is None else jnp.zeros_like(tile.prior)
    return PassInputs(even * _sum(Q, axis=0), even * _outer(dS, u), dprior)


def _project(tile, x):
    """Computes P of V, or Q of dS, ``[J, K, n, B]``."""
    x = x.astype(tile.W.dtype)
    return jnp.einsum("jknd,jdb->jknb", tile.W, x, preferred_element_type=accumulator(x.dtype))


def _dot(u, P):
    """Computes u_i . P_ij for every example, ``[J, n, B]``."""
    return materialize(_sum(u[None].astype(P.dtype) * P, axis=1))


def _sum(x, axis):
    """Sums over a leading axis.

    A sum of few terms is written out as a sum of whole arrays, which XLA's CPU backend computes
    several times as fast; one of many terms would take long to compile.
    """
    if x.shape[axis] > MOST_TERMS:
        return jnp.sum(x, axis)
    return sum(jax.lax.index_in_dim(x, i, axis, keepdims=False) for i in range(x.shape[axis]))


def _coupling(tile, V, normalizer):
    """Computes the coupling coefficients ``[J, n, B]``, and P."""
    P = _project(tile, V)
    logits = _dot(tile.u, P)
    if tile.prior is not None:
        logits += tile.prior[:, :, None].astype(logits.dtype)
    return materialize(normalize(logits, normalizer, axis=0)), P


def _times(c, u):
    """Computes c_ij u_i, ``[J, K, n, B]``, in the type of u."""
    return (c[:, None] * u[None].astype(c.dtype)).astype(u.dtype)


def _combine(tile, y):
    """Computes sum_i W_ij y_ij, ``[J, D, B]``."""
    wide = accumulator(y.dtype)
    return jnp.einsum("jknd,jknb->jdb", tile.W, y, preferred_element_type=wide)


def _outer(x, y):
    """Computes y_ij x_j^T summed over the batch, ``[J, K, n, D]``."""
    wide = x.dtype
    return jnp.einsum("jknb,jdb->jknd", y, x.astype(y.dtype), preferred_element_type=wide)


# Tiles. Capsules that only fill the last tile have u = 0 and W = 0, so they add zero to every sum.


def _tile_size(inputs: PassInputs) -> int:
    (K, I, B), J = inputs.u.shape, inputs.W.shape[2]
    tile = max(1, TILE_BYTES // max(1, 4 * J * K * typical_size(B)))
    if I <= 2 * tile:
        return I  # no loop, no copies
    tiles = -(-I // tile)
    return -(-I // tiles)


_CAPSULE_AXIS = PassInputs(u=1, W=0, prior=1)


def _by_axis(function: Callable, *trees: PassInputs) -> PassInputs:
    """Applies ``function(axis of the input capsules, leaf of each tree)`` to leaves that exist."""
    return PassInputs(
        *(None if x[0] is None else function(axis, *x) for axis, *x in zip(_CAPSULE_AXIS, *trees))
    )


def _transposed(inputs: PassInputs) -> PassInputs:
    """Transposes W ``[I, K, J, D]`` to ``[J, K, I, D]``, or back."""
    return inputs if inputs.W is None else inputs._replace(W=inputs.W.swapaxes(0, 2))


def _padded(inputs: PassInputs, tile: int) -> PassInputs:
    def pad(axis, x):
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, -x.shape[axis] % tile)
        return jnp.pad(x, widths)

    return _by_axis(pad, inputs)


def _slice(inputs: PassInputs, start, size: int) -> PassInputs:
    return _by_axis(lambda axis, x: jax.lax.dynamic_slice_in_dim(x, start, size, axis), inputs)


def _over_tiles(
    function: Callable, total: Any, inputs: PassInputs, sums: PassInputs
) -> tuple[Any, PassInputs]:
    """Computes ``total, part = function(total, tile)`` for all tiles, one after another.

    Returns:
      The last total, and ``sums`` with every part added in its place.
    """
    size = _tile_size(inputs)
    whole, sums = _padded(inputs, size), _padded(sums, size)

    def add(axis, x, part, at):
        place = jax.lax.dynamic_slice_in_dim(x, at, size, axis)
        return jax.lax.dynamic_update_slice_in_dim(x, place + part.astype(x.dtype), at, axis)

    def step(n, carry):
        total, sums = carry
        # A loop that reads a slice at n, or writes one, reads n again for every number, which may
        # have changed as far as the compiler knows, and is not vectorized. So slices are copied.
        tile = materialize(_transposed(_slice(whole, n * size, size)))
        total, part = function(total, tile)
        part = materialize(part)
        return total, _by_axis(functools.partial(add, at=n * size), sums, _transposed(part))

    total, sums = jax.lax.fori_loop(0, whole.u.shape[1] // size, step, (total, sums))
    sums = materialize(sums)  # a single tile has no loop that would end here
    return total, _slice(sums, 0, inputs.u.shape[1])
