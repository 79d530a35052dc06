"""Updates of some parameters scaled, or left out."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def paths_of(params: Any) -> list[str]:
    """Return the paths of the arrays of a nested dictionary, with dots between keys."""
    return [_path(keys) for keys, _ in jax.tree.leaves_with_path(params)]


def scale_updates(
    optimizer: optax.GradientTransformation, factor: Callable[[str], float]
) -> optax.GradientTransformation:
    """Multiply the updates of an optimizer by factors that depend on the parameter.

    A parameter with the factor zero is frozen: it keeps its bits, whatever the weight decay, and
    its gradient counts as zero, also in the norm by which gradients are clipped. The state is that
    of the optimizer.

    Args:
      optimizer: an Optax transformation.
      factor: a function of the path of a parameter, such as ``"decoder.layers.0.kernel"``, to the
        factor of its updates, 0 or above.

    Example:
      >>> import optax
      >>> sgd = scale_updates(optax.sgd(1.0), lambda path: 0.5 if path == "w" else 1.0)
      >>> params = {"w": jnp.ones(()), "b": jnp.ones(())}
      >>> updates, _ = sgd.update(params, sgd.init(params), params)
      >>> float(updates["w"]), float(updates["b"])
      (-0.5, -1.0)
    """

    def before(keys, gradient):
        return gradient if factor(_path(keys)) else jnp.zeros_like(gradient)

    def after(keys, update):
        scale = factor(_path(keys))
        if scale == 1:
            return update
        # A negative zero: x + -0.0 has the bits of x for every x, and -0.0 + 0.0 has not.
        return scale * update if scale else jnp.full_like(update, -0.0)

    def update(gradients, state, params=None):
        gradients = jax.tree.map_with_path(before, gradients)
        updates, state = optimizer.update(gradients, state, params)
        return jax.tree.map_with_path(after, updates), state

    return optax.GradientTransformation(optimizer.init, update)


def _path(keys) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator=".")
