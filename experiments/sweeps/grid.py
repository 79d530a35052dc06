"""The text in which a grid of runs is written."""

import itertools
import re
from collections.abc import Sequence

from experiments.config import UserError


def parse_grid(text: str) -> dict[str, tuple[str, ...]]:
    """Returns flags and their values from a text such as ``routing=em,vb;seed=0..4``.

    A range a..b includes b.

    Raises:
      UserError: the text is not a valid grid.
    """
    axes = [axis.partition("=") for axis in text.split(";")]
    grid = {}
    for name, _, values in axes:
        parts = [_values(value.strip()) for value in values.split(",")]
        if sum(map(len, parts)) > 10**6:
            raise UserError(f"--grid={text}: {name.strip()} has more than a million values")
        grid[name.strip()] = tuple(str(v) for v in itertools.chain(*parts))
    whole = all(n and all(v) and len(set(v)) == len(v) for n, v in grid.items())
    if len(grid) < len(axes) or not whole or "workdir" in grid:
        raise UserError(
            f"--grid={text}: write it as 'routing=em,vb;seed=0..4', without empty or repeated "
            "names and values, and without workdir"
        )
    return grid


def _values(text: str) -> Sequence:
    ends = re.fullmatch(r"(-?\d{1,18})\.\.(-?\d{1,18})", text)
    # A range that runs backwards is empty, which is reported like a missing value.
    return (range(int(ends[1]), int(ends[2]) + 1) or ("",)) if ends else (text,)
