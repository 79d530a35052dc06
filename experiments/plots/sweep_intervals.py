"""The rows of a sweep: one dot per run, their mean and its confidence interval."""

from typing import NamedTuple

from experiments.plots.page import (
    BLUE,
    GREY,
    INK,
    LITERAL,
    PALE,
    add_axes,
    blank_page,
    save_figure,
    style_axes,
)


class Dots(NamedTuple):
    """A row: the test errors of its runs and the 95% interval of their mean, in percent."""

    name: str
    errors: list[float]
    low: float
    high: float


def plot_intervals(path, tables, title="") -> None:
    """Plots tables below each other; a line marks the mean of the first row of each.

    Args:
      path: of the file that is written.
      tables: lists of :class:`Dots`.
      title: of the page.
    """
    save_figure(_intervals_figure(tables, title), path)


def _intervals_figure(tables, title=""):
    longest = max(len(_short(row.name)) for table in tables for row in table)
    left, pitch = 0.35 + 0.066 * longest, 0.26
    heights = [0.25 + pitch * len(table) for table in tables]
    page = blank_page(left + 4.4, sum(heights) + 0.75 * len(tables), title)
    low = min(row.low for table in tables for row in table)
    high = max(row.high for table in tables for row in table)
    edge, top = 0.04 * (high - low or 1), 0.2
    for n, (table, height) in enumerate(zip(tables, heights)):
        axes = add_axes(page, left, top, 4.1, height)
        style_axes(axes, "", "test error, %" if n + 1 == len(tables) else "")
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", color="#E9ECEE", lw=0.6)
        axes.axvline(sum(table[0].errors) / len(table[0].errors), color=PALE, lw=0.9, ls="--")
        for y, row in enumerate(table):
            axes.plot((row.low, row.high), (y, y), color=BLUE, lw=1.4, solid_capstyle="butt")
            axes.plot(row.errors, [y] * len(row.errors), "o", color=GREY, ms=2.6, alpha=0.8, mew=0)
            mean = sum(row.errors) / len(row.errors)
            axes.plot(mean, y, "o", color=BLUE, ms=5, mec="white", mew=0.7)
        axes.set_yticks(
            range(len(table)), [_short(row.name) for row in table], color=INK, **LITERAL
        )
        axes.tick_params(axis="y", length=0)
        axes.set(ylim=(len(table) - 0.4, -0.6), xlim=(max(0, low - edge), high + edge))
        top += height + 0.75
    return page.figure


def _short(name):
    return name if len(name) <= 44 else name[:43] + "…"
