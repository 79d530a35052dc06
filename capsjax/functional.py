"""NNX modules as pure functions of a plain dictionary of parameters.

This is the only module that splits and merges NNX modules. All others see pytrees, to which
``jax.jit``, ``jax.grad``, ``jax.vmap`` over seeds, Optax and Orbax apply directly.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
from flax import nnx

from capsjax import models


class Model(NamedTuple):
    """A network as two pure functions."""

    init: Callable[[chex.PRNGKey], dict]  # key -> parameters
    apply: Callable[..., Any]  # (params, *args, method="__call__", **kwargs) -> output


def from_module(make_module: Callable[[nnx.Rngs], nnx.Module]) -> Model:
    """Turn the constructor of an NNX module into a :class:`Model`.

    Args:
      make_module: makes the module from ``nnx.Rngs``. All its variables must be ``nnx.Param``; it
        has no running statistics and no random state.

    Returns:
      The functions ``init(key)``, which returns a nested dictionary of arrays, and
      ``apply(params, ...)``, which calls the module, or with ``method="name"`` one of its methods.

    Raises:
      TypeError: the module has variables that are not parameters.

    Example:
      >>> model = from_module(lambda rngs: nnx.Linear(3, 2, rngs=rngs))
      >>> params = model.init(jax.random.key(0))
      >>> model.apply(params, jax.numpy.ones((1, 3))).shape
      (1, 2)
    """
    graph, variables = nnx.split(nnx.eval_shape(lambda: make_module(nnx.Rngs(0))))
    others = {
        type(v).__name__ for _, v in nnx.to_flat_state(variables) if not isinstance(v, nnx.Param)
    }
    if others:
        raise TypeError(f"only nnx.Param can be made functional, not {', '.join(sorted(others))}")

    def init(key):
        return nnx.to_pure_dict(nnx.state(make_module(nnx.Rngs(key))))

    def apply(params, *args, method: str = "__call__", **kwargs):
        return getattr(nnx.merge(graph, params), method)(*args, **kwargs)

    return Model(init, apply)


def create_model(config: models.Config) -> Model:
    """Make a :class:`Model` of the network that a configuration describes.

    Example:
      >>> model = create_model(models.preset("capsnet_tiny"))
      >>> params = model.init(jax.random.key(0))
      >>> model.apply(params, jax.numpy.zeros((2, 28, 28, 1))).scores.shape
      (2, 10)
    """
    return from_module(functools.partial(_build, config))


def _build(config, rngs):
    return models.build(config, rngs=rngs)


def count_parameters(params: Any) -> int:
    """Count the scalars in a pytree of arrays, or of their shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
