"""Errors of examples, apart for what is easy and what is hard."""

from collections.abc import Sequence

import numpy as np


def percent(share: float) -> float:
    """Returns a share in percent, rounded."""
    return round(100 * float(share), 4)


def error_by_bin(
    accuracy: np.ndarray, values: np.ndarray, edges: Sequence[float], names: tuple[str, str]
) -> list[dict]:
    """Returns the error in percent in each bin of a property that has any examples.

    Args:
      accuracy: of each example, ``[N]``.
      values: the property of each example, ``[N]``. An example on the edge of two bins is in the
        higher.
      edges: of the bins, from low to high; the last bin has all that is above its lower edge.
      names: in the rows, of the property and of the examples.
    """
    rows = []
    for low, high in zip(edges, edges[1:]):
        inside = (low <= values) & ((values < high) | (high == edges[-1]))
        if inside.any():
            error = percent(1 - accuracy[inside].mean())
            rows.append(dict(zip(names, ([low, high], int(inside.sum())))) | {"error": error})
    return rows
