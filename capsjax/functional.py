"""NNX modules as pure functions of plain pytrees: parameters, and statistics where there are any.

This is the only module that splits and merges NNX modules. All others see pytrees, to which
``jax.jit``, ``jax.grad``, ``jax.vmap`` over seeds, Optax and Orbax apply directly.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import nnx

from capsjax import models


class Variables(NamedTuple):
    """The variables of a network with statistics. Others have a dictionary of parameters alone."""

    params: Any  # what the optimizer changes
    state: Any  # running statistics, which training computes in the forward pass


jax.export.register_namedtuple_serialization(Variables, serialized_name="capsjax.Variables")


class Model(NamedTuple):
    """A network as two pure functions."""

    init: Callable[[chex.PRNGKey], Any]  # key -> variables
    apply: Callable[..., Any]  # (variables, *args, method="__call__", **kwargs) -> output
    has_state: bool = False  # whether there are statistics


def from_module(make_module: Callable[[nnx.Rngs], nnx.Module]) -> Model:
    """Turn the constructor of an NNX module into a :class:`Model`.

    Args:
      make_module: makes the module from ``nnx.Rngs``. Its variables are ``nnx.Param`` and
        ``nnx.BatchStat``; it has no random state.

    Returns:
      The functions ``init(key)``, which returns a nested dictionary of arrays whose keys are
      strings (those of a list are "0", "1", ...), and ``apply(params, ...)``, which calls the
      module, or with ``method="name"`` one of its methods.
      If the module has statistics (``nnx.BatchStat``), ``init`` returns :class:`Variables`, which
      ``apply`` takes in place of the dictionary.

      With ``train=True``, ``apply`` computes as in training (with statistics of the batch) and
      returns ``(output, state)``, where ``state`` holds the new statistics, and is ``()`` for a
      network without any. ``axis_name`` is then the name of the mapped axis over which the batch
      is divided, as under ``jax.shard_map`` or ``jax.pmap``: statistics are those of all parts.
      ``momentum`` takes the place of that of all statistics: with 0 the new ones are those of the
      batch alone.
      Modules learn of both as ``nnx.BatchNorm`` does, by their attributes
      ``use_running_average`` and ``axis_name``.

    Raises:
      TypeError: the module has other variables; or, from ``apply``, the variables lack the
        statistics of the network, or have some that it does not have.
      ValueError: from ``apply``: the variables have other names or shapes than those from ``init``.

    Example:
      >>> model = from_module(lambda rngs: nnx.Linear(3, 2, rngs=rngs))
      >>> params = model.init(jax.random.key(0))
      >>> model.apply(params, jax.numpy.ones((1, 3))).shape
      (1, 2)
      >>> model = from_module(lambda rngs: nnx.BatchNorm(3, rngs=rngs))
      >>> params, state = model.init(jax.random.key(0))
      >>> x = jax.numpy.ones((1, 3))
      >>> output, state = model.apply(Variables(params, state), x, train=True)
      >>> model.apply(Variables(params, state), x).shape
      (1, 3)
    """
    abstract = nnx.eval_shape(lambda: make_module(nnx.Rngs(0)))
    graph, params, stats, others = nnx.split(abstract, nnx.Param, nnx.BatchStat, ...)
    abstract_params, abstract_stats = map(nnx.to_pure_dict, (params, stats))
    if others := {type(v).__name__ for _, v in nnx.to_flat_state(others)}:
        names = ", ".join(sorted(others))
        raise TypeError(f"only nnx.Param and nnx.BatchStat can be made functional, not {names}")
    has_state = bool(stats)

    def values(module, kind):
        return _with_text_keys(nnx.to_pure_dict(nnx.state(module, kind)))

    def init(key):
        module = make_module(nnx.Rngs(key))
        return join(values(module, nnx.Param), values(module, nnx.BatchStat))

    def apply(
        variables,
        *args,
        method: str = "__call__",
        train: bool = False,
        axis_name: str | None = None,
        momentum: float | None = None,
        **kwargs,
    ):
        params, stats = split(variables)
        if bool(stats) != has_state:
            needed = "Variables(params, state)" if has_state else "parameters alone"
            raise TypeError(f"the variables of this network are {needed}, as init returns them")
        state = _like(abstract_params, params), _like(abstract_stats, stats)
        module = nnx.merge(graph, *state[: 1 + has_state])
        if has_state and train:
            module.train(axis_name=axis_name)
            if momentum is not None:
                module.set_attributes(momentum=momentum)
        elif has_state:
            module.eval()
        output = getattr(module, method)(*args, **kwargs)
        if not train:
            return output
        return output, values(module, nnx.BatchStat) if has_state else ()

    return Model(init, apply, has_state)


def _with_text_keys(tree: Any) -> Any:
    """Make the integer keys of lists strings, as ``jax.export`` and file formats need them."""
    if not isinstance(tree, dict):
        return tree
    return {str(key): _with_text_keys(value) for key, value in tree.items()}


def _like(template: Any, tree: Any) -> Any:
    """Undo :func:`_with_text_keys`: give a tree the keys of the template.

    Refuses variables of another network, which may run with other shapes: those of other classes.
    """
    wanted, found = _named(template), _named(tree)
    if missing := sorted(wanted.keys() - found.keys()):
        raise ValueError(f"{missing[0]} is missing in these variables")
    if unknown := sorted(found.keys() - wanted.keys()):
        raise ValueError(f"{unknown[0]} of these variables is not one of this network")
    for name, leaf in wanted.items():
        if jnp.shape(found[name]) != leaf.shape:
            raise ValueError(
                f"{name} of these variables has the shape {list(jnp.shape(found[name]))}, and that "
                f"of this network {list(leaf.shape)}"
            )
    return jax.tree.unflatten(jax.tree.structure(template), [found[name] for name in wanted])


def _named(tree: Any) -> dict[str, Any]:
    """List the leaves by their path, with keys as text."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def split(variables: Any) -> tuple[Any, Any]:
    """Return parameters and statistics; the latter are ``()`` if variables are parameters alone."""
    return tuple(variables) if isinstance(variables, Variables) else (variables, ())


def join(params: Any, state: Any) -> Any:
    """Undo :func:`split`: the parameters alone if there are no statistics."""
    return Variables(params, state) if state else params


def outputs(model: Model, variables: Any, *args, **kwargs) -> tuple:
    """Call a model and return ``(output,)``, or with ``train=True`` ``(output, state)``.

    Losses hand the state on with it: ``out, *state = outputs(...)``, ``return ..., *state``.
    """
    found = model.apply(variables, *args, **kwargs)
    return found if kwargs.get("train") else (found,)


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


def count_parameters(variables: Any) -> int:
    """Count the trainable scalars in a pytree of arrays, or of their shapes.

    Running statistics of :class:`Variables` do not count.
    """
    params, _ = split(variables)
    return sum(leaf.size for leaf in jax.tree.leaves(params))
