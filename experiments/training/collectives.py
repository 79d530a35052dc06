"""What several processes tell each other: arrays, and what the first one has.

With one process all functions return what they are given. With several, all of them must call each
function, in the same order.
"""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from experiments.training import processes


def place(tree: Any, sharding: Sharding) -> Any:
    """Returns a pytree of arrays with a sharding, of whose devices others may have some.

    Every process must have the same arrays; it sends its devices their part.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def put(x):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                put(jax.random.key_data(x)), impl=jax.random.key_impl(x)
            )
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, tree)


def place_like(tree: Any, other: Any) -> Any:
    """Returns a pytree of arrays with the shardings of another one of its form."""
    return jax.tree.map(lambda x, y: place(x, y.sharding), tree, other)


def local(tree: Any) -> Any:
    """Returns replicated arrays as arrays of one device of this process."""

    def own(x):
        several = isinstance(x, jax.Array) and not x.is_fully_addressable
        return x.addressable_data(0) if several else x

    return jax.tree.map(own, tree)


def to_host(tree: Any) -> Any:
    """Returns arrays of several processes, divided or not, as whole arrays of NumPy."""

    def whole(x):
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return np.asarray(x)
        if not x.is_fully_replicated:
            # One array after another, because a device may not have room for all of them.
            replicated = NamedSharding(x.sharding.mesh, PartitionSpec())
            x = jax.jit(lambda x: x, out_shardings=replicated)(x)
        return np.asarray(x.addressable_data(0))

    return jax.tree.map(whole, tree)


def bytes_of_first(text: bytes | None) -> bytes:
    """Returns the bytes of the first process; what the others give does not count."""
    if processes.count() == 1:
        return text
    own = np.frombuffer(text if processes.is_first() else b"", np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(own.size)))
    own = own if processes.is_first() else np.zeros(size, np.uint8)
    return multihost_utils.broadcast_one_to_all(own).astype(np.uint8).tobytes() if size else b""


def value_of_first(value: Any) -> Any:
    """Returns the value of JSON that the first process has."""
    if processes.count() == 1:
        return value
    return json.loads(bytes_of_first(json.dumps(value).encode()))


def arrays_of_first(tree: Any) -> Any:
    """Returns the arrays of the first process, of NumPy; those of the others give the shapes."""
    if processes.count() == 1:
        return tree
    leaves, form = jax.tree.flatten(tree)
    # As bytes, because a sum of floats over the processes would change the sign of a zero.
    text = bytes_of_first(b"".join(np.asarray(x).tobytes() for x in leaves))
    found, start = [], 0
    for x in leaves:
        size = x.size * x.dtype.itemsize
        found.append(np.frombuffer(text[start : start + size], x.dtype).reshape(x.shape))
        start += size
    return form.unflatten(found)
