"""How many operations the matrix products and convolutions of a program are."""

import math
from collections.abc import Iterable
from typing import Any


def count_flops(jaxpr: Any) -> int:
    """Returns the operations of all matrix products and convolutions of a jaxpr, on all devices.

    A multiplication and an addition count as two. Bodies of ``scan`` count as often as they run;
    those of ``while``, whose number of turns is unknown, once; the longest branch of ``cond``.
    Kernels of Pallas count what one block does, times the blocks; ``shard_map`` what one device
    does, times the devices.
    """
    total = 0
    for equation in jaxpr.eqns:
        name, given = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = given["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(left[n] for n in contracted)
        elif name == "conv_general_dilated":
            kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.size
            features = kernel[given["dimension_numbers"].rhs_spec[0]]
            total += 2 * out * math.prod(kernel) // features // given["batch_group_count"]
        elif name == "cond":
            total += max(count_flops(branch.jaxpr) for branch in given["branches"])
        else:
            times = given["length"] if name == "scan" else 1
            if name == "pallas_call":
                times = math.prod(given["grid_mapping"].grid)
            elif name == "shard_map":
                times = math.prod(given["mesh"].shape[axis] for axis in given["newly_manual_axes"])
            total += times * sum(map(count_flops, _inner(given.values())))
    return total


def _inner(values: Iterable) -> Iterable:
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _inner(value)
        elif hasattr(value, "eqns"):
            yield value
        elif hasattr(value, "jaxpr"):
            yield value.jaxpr
