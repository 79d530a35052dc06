"""Variables of a network as the bytes of a safetensors file, and back."""

from typing import Any

import chex
import jax
import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from capsjax.functional import Model, Variables, join, split
from capsjax.pretrained.schema import PretrainedError

TYPES = ("float32", "float16")


def names_of(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a nested dictionary by their path, whose parts are joined by dots."""
    found = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found |= names_of(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


def named_variables(variables: Any) -> dict[str, Any]:
    """Return the arrays of a network by name: ``params.PATH``, and ``state.PATH`` of statistics."""
    params, state = split(variables)
    return names_of({"params": params} | ({"state": state} if state else {}))


def variables_of(named: dict[str, Any]) -> Any:
    """Undo :func:`named_variables`."""
    tree: dict[str, Any] = {}
    for name, value in named.items():
        *parts, last = name.split(".")
        place = tree
        for part in parts:
            place = place.setdefault(part, {})
        place[last] = value
    return join(tree["params"], tree.get("state", ()))


def to_bytes(variables: Any, dtype: str = "float32") -> bytes:
    """Return the safetensors file of some variables.

    Args:
      variables: float32.
      dtype: of the parameters in the file, ``float32`` or ``float16``. Statistics are float32.

    Raises:
      ValueError: the type is unknown, an array is no float32, or a number is not finite in it.
    """
    if dtype not in TYPES:
        raise ValueError(f"dtype must be one of {', '.join(TYPES)}, not {dtype!r}")
    arrays = {}
    for name, value in named_variables(variables).items():
        if not hasattr(value, "dtype"):
            raise ValueError(f"{name} is no array, but {type(value).__name__}")
        if value.dtype != np.float32:
            raise ValueError(f"{name} is {value.dtype}, not float32")
        kind = dtype if name.startswith("params.") else "float32"
        with np.errstate(over="ignore"):
            array = np.asarray(value).astype(kind, order="C")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} has numbers that are not finite in {kind}")
        arrays[name] = array
    return safetensors.save(arrays, metadata={"format": "capsjax"})


def from_bytes(data: bytes, model: Model) -> Any:
    """Return the variables of a model, float32, from a safetensors file.

    Raises:
      PretrainedError: it is no such file, or its names, shapes and types are not the model's.
    """
    wanted = named_variables(shapes_of(model))
    try:
        found = safetensors.load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise PretrainedError(f"no safetensors file: {str(error)[:200]}") from error
    if unknown := sorted(found.keys() - wanted.keys()):
        raise PretrainedError(f"{unknown[0][:100]!r} is no array of this network")
    for name, leaf in wanted.items():
        if name not in found:
            raise PretrainedError(f"{name} is missing")
        if found[name].shape != leaf.shape:
            shapes = f"{list(found[name].shape)}, not {list(leaf.shape)}"
            raise PretrainedError(f"{name} has the shape {shapes}")
        if str(found[name].dtype) not in TYPES:
            raise PretrainedError(f"{name} is {found[name].dtype}, not float32 or float16")
        if not np.isfinite(found[name]).all():
            raise PretrainedError(f"{name} has numbers that are not finite")
    arrays = {name: jax.numpy.asarray(found[name], leaf.dtype) for name, leaf in wanted.items()}
    return variables_of(arrays)


def shapes_of(model: Model) -> dict | Variables:
    """Return the shapes of the variables of a model, without computing them.

    Raises:
      PretrainedError: they are beyond any memory.
    """
    try:
        return jax.eval_shape(model.init, jax.random.key(0))
    except (OverflowError, MemoryError) as error:
        raise PretrainedError("a network of these sizes is beyond any memory") from error


def size_of(shapes: chex.ArrayTree) -> int:
    """Return the bytes of float32 arrays."""
    return 4 * sum(leaf.size for leaf in jax.tree.leaves(shapes))
