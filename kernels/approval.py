"""The shapes for which the kernels of routing were found right and fast on this device.

``auto`` takes a kernel for these shapes alone. A program that wants kernels tries them before its
first step (:mod:`kernels.trial`) and approves what passed; nothing is measured while a function is
traced. This is memory of the process: where verdicts are kept is the program's affair.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

from capsjax.routing import PassInputs
from kernels.problems import Problem


class Shapes(NamedTuple):
    """What a kernel is compiled for."""

    platform: str  # tpu or gpu
    dtype: str
    problem: Problem


_approved: set[Shapes] = set()
_listeners: list[set[Shapes]] = []


def shapes_of(platform: str, inputs: PassInputs, normalizer: str) -> Shapes:
    """Returns the shapes of a pass, u ``[K, I, B]`` and W ``[I, K, J, D]``."""
    K, I, B = inputs.u.shape
    J, D = inputs.W.shape[2:]
    problem = Problem(B, I, J, D, K, normalizer, inputs.prior is not None)
    return Shapes(platform, inputs.u.dtype.name, problem)


def approve(shapes: Shapes, right: bool = True) -> None:
    """Lets ``auto`` take the kernels for these shapes from now on, or no longer."""
    (_approved.add if right else _approved.discard)(shapes)


def is_approved(shapes: Shapes) -> bool:
    """Returns whether ``auto`` takes the kernels; called for each pass that is traced."""
    for asked in _listeners:
        asked.add(shapes)
    return shapes in _approved


@contextlib.contextmanager
def asked_for() -> Iterator[set[Shapes]]:
    """Collects the shapes for which ``auto`` looks, as functions are traced in this context."""
    asked: set[Shapes] = set()
    _listeners.append(asked)
    try:
        yield asked
    finally:
        # Not remove, which takes the first set that is equal.
        _listeners[:] = [one for one in _listeners if one is not asked]
