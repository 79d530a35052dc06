"""The kind of device that a function is traced for, and the layout of arrays on CPU."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint


def backend() -> str:
    """Return the kind of device that a function is traced for: ``cpu``, ``gpu`` or ``tpu``.

    It is that of JAX's default backend. Under ``jax.sharding.use_abstract_mesh`` with an abstract
    device, as in a compilation for other hardware, it is that of the abstract device.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    platform = jax.default_backend() if device is None else device.platform
    return "gpu" if platform == "cuda" else platform


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """Trace functions for no device in particular, so that what is traced runs on any.

    Choices that depend on the backend are then those of plain JAX: XLA's convolution, no layouts
    and no kernels, as ``jax.export`` and converters to other formats need them.

    Example:
      >>> with portable():
      ...   backend()
      'portable'
    """
    device = jax.sharding.AbstractDevice("portable", None, "portable")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        yield


def typical_size(batch: Any) -> int:
    """Return the size of a batch for choices that depend on it, and 128 if it is symbolic.

    A symbolic size (``jax.export.symbolic_shape``) can't be compared with numbers. What is chosen
    changes speed and memory, never results.
    """
    return batch if isinstance(batch, int) else 128


def materialize(tree: Any) -> Any:
    """Compute the arrays of a tree once, into memory in the order of their axes, on CPU.

    XLA's CPU backend may compute an array again in every loop that reads it, and leave a
    transposition to these loops, which then read memory with large strides. It does neither to an
    array whose layout is given (with JAX 0.10 a barrier alone does not prevent it). Gradients are
    materialized in the same way. On other backends the arrays are returned unchanged.
    """
    return jax.tree.map(_in_order, tree) if backend() == "cpu" else tree


@jax.custom_vjp
def _in_order(x):
    x = with_layout_constraint(jnp.asarray(x), Layout(tuple(range(jnp.ndim(x)))))
    # Without the barrier JAX 0.10 gives other results any layout if the layout of one is given.
    return jax.lax.optimization_barrier(x)


_in_order.defvjp(lambda x: (_in_order(x), None), lambda _, dx: (_in_order(dx),))
