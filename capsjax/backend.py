"""Which kind of device a function is traced for, and what that kind of compiler must be told."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint


def backend() -> str:
    """``cpu``, ``gpu`` or ``tpu``: JAX's default, or the target of a compilation for another.

    Implementations are chosen while a function is traced. Under
    ``jax.sharding.use_abstract_mesh`` with an abstract device, that device counts.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    platform = jax.default_backend() if device is None else device.platform
    return "gpu" if platform == "cuda" else platform


def materialize(tree: Any) -> Any:
    """The same arrays; on CPU each is computed once and lies in memory in the order of its axes.

    XLA's CPU backend would compute an array again in every loop that reads it, and leave turning
    its axes to those loops, which then read memory in leaps. It does neither to an array whose
    layout is given (with JAX 0.10 a barrier alone doesn't stop it). The same holds for gradients.
    """
    return jax.tree.map(_in_order, tree) if backend() == "cpu" else tree


@jax.custom_vjp
def _in_order(x):
    x = with_layout_constraint(jnp.asarray(x), Layout(tuple(range(jnp.ndim(x)))))
    # With JAX 0.10, a result whose layout is given would give others any layout.
    return jax.lax.optimization_barrier(x)


_in_order.defvjp(lambda x: (_in_order(x), None), lambda _, dx: (_in_order(dx),))
