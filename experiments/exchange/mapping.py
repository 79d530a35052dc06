"""The mapping of foreign arrays to the variables of a network, and what is said of it."""

from typing import Any, NamedTuple

import numpy as np

from capsjax import Preprocessing
from capsjax.models import Config as ModelConfig
from experiments.config import UserError
from experiments.files import one_line

COUPLINGS = ("outputs", "inputs")  # what they sum to one over, see capsjax.routing.dynamic


class Imported(NamedTuple):
    """A network of another program, as one of capsjax."""

    config: ModelConfig
    variables: Any  # what the network's apply takes, float32
    preprocessing: Preprocessing
    mapped: list[str]  # a line for each array that was taken
    not_mapped: list[str]  # a line for all that differs or was left


class Arrays:
    """Foreign arrays, which are taken one by one; what is left is not mapped.

    Args:
      found: by name, float64.
      flag: what named the file, for messages.
    """

    def __init__(self, found: dict[str, np.ndarray], flag: str):
        self.left, self.flag, self.lines = dict(found), flag, []

    def take(self, name: str, target: str, shape: tuple = ()) -> np.ndarray:
        """Returns an array, and notes what becomes of it.

        Args:
          name: of the array. target: path of the variable that it becomes.
          shape: that it must have; None for an axis of any length. (): any shape.

        Raises:
          UserError: it is missing or has another shape.
        """
        if name not in self.left:
            near = ", ".join(map(one_line, sorted(self.left)[:8])) or "none"
            raise UserError(f"{self.flag}: no array {name}; there are {near}")
        value = self.left.pop(name)
        fits = len(shape) == value.ndim and all(n in (None, m) for n, m in zip(shape, value.shape))
        if shape and not fits:
            wanted = ", ".join("any" if n is None else str(n) for n in shape)
            raise UserError(f"{self.flag}: {name} is {list(value.shape)}, not [{wanted}]")
        self.lines.append(f"{name} {list(value.shape)} -> {target}")
        return value

    def names(self, ending: str) -> list[str]:
        """Returns the names that end so, in the order of the numbers in them."""
        return sorted((n for n in self.left if n.endswith(ending)), key=_natural)

    def leftovers(self) -> list[str]:
        """Returns a line for each array that was not taken."""
        return [f"{one_line(n)} {list(x.shape)} is not used" for n, x in self.left.items()]


def _natural(name: str) -> list:
    """Returns a key that sorts conv2d, conv2d_2, conv2d_10 in this order."""
    parts = name.rpartition(".")[0].rpartition(".")[2].rpartition("_")
    return [int(parts[2]) if parts[1] and parts[2].isdecimal() else 0, name]


def float32(tree: Any) -> Any:
    """Returns a nested dictionary with its arrays in float32."""
    if isinstance(tree, dict):
        return {name: float32(value) for name, value in tree.items()}
    return np.ascontiguousarray(tree, np.float32)


def image_side(arrays: Arrays, pixels: int, channels: int) -> int:
    """Returns the side of a square image with this number of pixels in all channels.

    Raises:
      UserError: it is not square.
    """
    side = round((pixels / channels) ** 0.5)
    if side * side * channels != pixels:
        raise UserError(
            f"{arrays.flag}: {pixels} outputs are no square image of {channels} channels"
        )
    return side


def dense_layers(kernels: list, biases: list) -> dict:
    """Returns the layers of a decoder: kernels ``[in, out]`` and biases ``[out]``."""
    pairs = enumerate(zip(kernels, biases, strict=True))
    return {"layers": {str(n): {"kernel": k, "bias": b} for n, (k, b) in pairs}}
