"""How many operations the matrix products and convolutions of a program are."""

import math
from collections.abc import Iterable
from typing import Any


def count_flops(jaxpr: Any) -> int:
    """Returns the operations of all matrix products and convolutions of a jaxpr, on all devices.

    A multiplication and an addition count as two; those with the zeros of padding and of dilation,
    as in the gradient of a strided convolution by its image, do not count. Bodies of ``scan`` count
    as often as they run; those of ``while``, whose number of turns is unknown, once; the longest
    branch of ``cond``. Kernels of Pallas count what one block does, times the blocks; ``shard_map``
    what one device does, times the devices.
    """
    total = 0
    for equation in jaxpr.eqns:
        name, given = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = given["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(left[n] for n in contracted)
        elif name == "conv_general_dilated":
            total += _of_convolution(equation)
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


def _of_convolution(equation: Any) -> int:
    images, kernel = (x.aval.shape for x in equation.invars)
    out, given = equation.outvars[0].aval.shape, equation.params
    of_images, of_kernel, of_out = given["dimension_numbers"]
    total = 2 * out[of_out[0]] * out[of_out[1]] * kernel[of_kernel[1]]
    settings = ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
    for n, (stride, (low, _), apart, spread) in enumerate(zip(*map(given.get, settings)), 2):
        side, size, count = images[of_images[n]], kernel[of_kernel[n]], out[of_out[n]]
        places = (stride * i + spread * k - low for i in range(count) for k in range(size))
        total *= sum(place % apart == 0 and 0 <= place // apart < side for place in places)
    return total


def _inner(values: Iterable) -> Iterable:
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _inner(value)
        elif hasattr(value, "eqns"):
            yield value
        elif hasattr(value, "jaxpr"):
            yield value.jaxpr
