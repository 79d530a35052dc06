"""The sweeps of routing in plain JAX: a loop over tiles of input capsules.

Runs on any backend. The equations, and the letters P, Q, dc, db, are those of
:mod:`capsjax.routing.sweeps`; here they are written for one tile of n input capsules,
u ``[K, n, B]`` and W ``[J, K, D, n]``, with all output capsules at once.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from capsjax.precision import accumulator
from capsjax.routing.normalizers import normalize
from capsjax.routing.sweeps import Inputs, Sweeps, even_coupling

# Of the largest array of a tile, [J, K, n, B]. Measured on CPU: larger ones leave the cache
# of a core, smaller ones make short matrix products.
TILE_BYTES = 4 * 2**20
MOST_TERMS = 32  # of a sum that is written out


def forward(inputs: Inputs, V: jax.Array, normalizer: str) -> jax.Array:
    """S ``[J, D, B]``; see :class:`~capsjax.routing.sweeps.Sweeps`."""

    def add(S, tile):
        c, _ = _coupling(tile, V, normalizer)
        return S + _combine(tile, c)

    return _over_tiles(add, jnp.zeros_like(V), inputs)


def backward_state(inputs: Inputs, V: jax.Array, dS: jax.Array, normalizer: str) -> jax.Array:
    """dV ``[J, D, B]``; see :class:`~capsjax.routing.sweeps.Sweeps`."""

    def add(dV, tile):
        c, _ = _coupling(tile, V, normalizer)
        return dV + _combine(tile, _logit_gradient(c, _dot(tile.u, _project(tile, dS))))

    return _over_tiles(add, jnp.zeros_like(V), inputs)


def backward_inputs(
    inputs: Inputs,
    Vs: jax.Array,
    dSs: jax.Array,
    normalizer: str,
    constant: bool,
) -> Inputs:
    """Gradients by the inputs; see :class:`~capsjax.routing.sweeps.Sweeps`."""

    def one(tile):
        wide = accumulator(tile.W.dtype)
        du, dW = jnp.zeros(tile.u.shape, wide), jnp.zeros(tile.W.shape, wide)
        dprior = None if tile.prior is None else jnp.zeros_like(tile.prior)
        for t, dS in enumerate(dSs):
            Q = _project(tile, dS)
            if t == len(Vs):
                even = even_coupling(len(dS), normalizer)
                du += even * _sum(Q, axis=0)
                dW += even * _outer(dS, jnp.broadcast_to(tile.u[None], Q.shape))
                continue
            c, P = _coupling(tile, V := Vs[t], normalizer)
            du += _sum(c[:, None] * Q, axis=0)
            dW += _outer(dS, _times(c, tile.u))
            if constant:
                continue
            db = _logit_gradient(c, _dot(tile.u, Q))
            du += _sum(db[:, None] * P, axis=0)
            dW += _outer(V, _times(db, tile.u))
            if dprior is not None:
                dprior += jnp.sum(db, axis=2)
        return Inputs(du.astype(tile.u.dtype), dW.astype(tile.W.dtype), dprior)

    return _map_tiles(one, inputs)


STREAM = Sweeps(forward, backward_state, backward_inputs)


def _project(tile, x):
    """P or Q, ``[J, K, n, B]``, of V or dS."""
    x = x.astype(tile.W.dtype)
    return jnp.einsum("jkdn,jdb->jknb", tile.W, x, preferred_element_type=accumulator(x.dtype))


def _dot(u, P):
    """u_i . P_ij for every example, ``[J, n, B]``."""
    return _once(_sum(u[None].astype(P.dtype) * P, axis=1))


# Otherwise XLA's CPU backend would compute an array again for everything that is made of it.
_once = jax.lax.optimization_barrier


def _sum(x, axis):
    """Sum over a leading axis: of whole arrays, which XLA's CPU backend does several times as
    fast, unless they are many and would take long to compile."""
    if x.shape[axis] > MOST_TERMS:
        return jnp.sum(x, axis)
    return sum(jax.lax.index_in_dim(x, i, axis, keepdims=False) for i in range(x.shape[axis]))


def _coupling(tile, V, normalizer):
    """Coupling coefficients ``[J, n, B]``, and P."""
    P = _project(tile, V)
    logits = _dot(tile.u, P)
    if tile.prior is not None:
        logits += tile.prior[:, :, None].astype(logits.dtype)
    return _once(normalize(logits, normalizer, axis=0)), P


def _logit_gradient(c, dc):
    return _once(c * (dc - jnp.sum(c * dc, axis=0, keepdims=True)))


def _times(c, u):
    """c_ij u_i, ``[J, K, n, B]``, in the type of u."""
    return (c[:, None] * u[None].astype(c.dtype)).astype(u.dtype)


def _combine(tile, c):
    """sum_i W_ij (c_ij u_i), ``[J, D, B]``."""
    product = _times(c, tile.u)
    return jnp.einsum("jkdn,jknb->jdb", tile.W, product, preferred_element_type=c.dtype)


def _outer(x, y):
    """x_j y_ij^T summed over the batch, ``[J, K, D, n]``."""
    wide = x.dtype
    return jnp.einsum("jdb,jknb->jkdn", x.astype(y.dtype), y, preferred_element_type=wide)


# Tiles. Capsules that only fill the last tile have u = 0 and W = 0, hence add nothing to any sum.


def _tile_size(inputs: Inputs) -> int:
    (K, I, B), J = inputs.u.shape, inputs.W.shape[0]
    tile = max(1, TILE_BYTES // max(1, 4 * J * K * B))
    tiles = -(-I // tile)
    return -(-I // tiles)


_CAPSULE_AXIS = Inputs(u=1, W=3, prior=1)


def _padded(inputs: Inputs, tile: int) -> Inputs:
    def pad(x, axis):
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, -x.shape[axis] % tile)
        return jnp.pad(x, widths)

    return _by_axis(pad, inputs)


def _by_axis(function: Callable, inputs: Inputs) -> Inputs:
    """``function(leaf, axis of the input capsules)`` for every leaf that there is."""
    return Inputs(*(None if x is None else function(x, a) for x, a in zip(inputs, _CAPSULE_AXIS)))


def _slice(inputs: Inputs, start, size: int) -> Inputs:
    return _by_axis(lambda x, a: jax.lax.dynamic_slice_in_dim(x, start, size, a), inputs)


def _over_tiles(add: Callable, start: jax.Array, inputs: Inputs) -> jax.Array:
    """``add(total, tile)`` for all tiles, one after another."""
    size = _tile_size(inputs)
    padded = _padded(inputs, size)
    tiles = padded.u.shape[1] // size
    return jax.lax.fori_loop(
        0, tiles, lambda n, total: add(total, _slice(padded, n * size, size)), start
    )


def _map_tiles(function: Callable, inputs: Inputs) -> Inputs:
    """``function(tile)`` of all tiles, each in its place."""
    size = _tile_size(inputs)
    padded = _padded(inputs, size)
    tiles = padded.u.shape[1] // size

    def put(n, out):
        part = function(_slice(padded, n * size, size))
        pairs = zip(out, part, _CAPSULE_AXIS)
        return Inputs(
            *(
                None if o is None else jax.lax.dynamic_update_slice_in_dim(o, p, n * size, a)
                for o, p, a in pairs
            )
        )

    out = jax.lax.fori_loop(0, tiles, put, _by_axis(lambda x, a: jnp.zeros_like(x), padded))
    return _slice(out, 0, inputs.u.shape[1])
