"""The paper's Figure 5: overlapping digits and the network's reconstruction of each."""

from typing import NamedTuple

import numpy as np

from experiments.plots.page import (
    BLUE,
    GREY,
    INK,
    RED,
    blank_page,
    draw_image,
    save_figure,
    write_text,
)

# On black, so that their sum is white.
FIRST, SECOND = (1.0, 0.42, 0.0), (0.0, 0.58, 1.0)
COLUMNS = 8  # in a line


class PairColumn(NamedTuple):
    """One example: floats in 0..1, and names of classes."""

    image: np.ndarray  # [H, W, 1]
    digits: np.ndarray  # [2, H, W, 1], of the label
    reconstructions: np.ndarray  # [2, H, W, 1], of the target
    label: tuple[str, str]
    prediction: tuple[str, str]
    target: tuple[str, str]  # the classes whose capsules were decoded


def plot_segmentation(path, groups, title="") -> None:
    """Plots inputs, their digits and the reconstructions, each pair overlaid in two colours.

    groups: (heading, kind of the heading: right, wrong or absent, columns), at most 8 columns.
    """
    save_figure(_segmentation_figure(groups, title), path)


def two_colours(pair) -> np.ndarray:
    """Overlays two grey images [2, H, W, 1] as RGB [H, W, 3], the first orange, the second blue."""
    return np.clip(pair[0] * np.array(FIRST) + pair[1] * np.array(SECOND), 0, 1)


def _segmentation_figure(groups, title=""):
    colors = {"right": INK, "wrong": RED, "absent": BLUE}
    cell, gap, top = 0.68, 0.3, 0.79
    image = groups[0][2][0].image
    width, height = cell - 0.06, (cell - 0.06) * image.shape[0] / image.shape[1]
    lines = _lines(groups)
    pitch = top + 3 * (height + 0.05) + 0.25
    page = blank_page(7.0, pitch * len(lines) + 0.2, title)
    note = "l: label   p: prediction   r: decoded, the first in orange, the second in blue"
    write_text(page, 0.1, pitch * len(lines), note, va="top", color=GREY)
    for number, line in enumerate(lines):
        x, y = 1.06, number * pitch
        rows = [y + top + k * (height + 0.05) for k in range(3)]
        for place, name in zip(rows, ("input", "its digits", "reconstructions"), strict=True):
            write_text(page, x - 0.08, place + height / 2, name, color=GREY, ha="right")
        write_text(page, x - 0.08, y + 0.5, "l\np\nr", color=GREY, ha="right")
        for heading, kind, columns in line:
            style = dict(color=colors[kind])
            write_text(page, x, y + 0.07, heading, **style)
            page.hlines(y + 0.18, x, x + len(columns) * cell - 0.06, colors[kind], lw=0.8)
            for column in columns:
                # Long names are cut to the width of a column.
                names = "\n".join("  ".join(n[:3] for n in pair) for pair in column[3:])
                write_text(page, x + width / 2, y + 0.5, names, ha="center", **style)
                shown = (
                    column.image,
                    two_colours(column.digits),
                    two_colours(column.reconstructions),
                )
                for place, image in zip(rows, shown, strict=True):
                    draw_image(page, image, x, place, width, height)
                x += cell
            x += gap
    return page.figure


def _lines(groups):
    """Arranges groups in lines of at most COLUMNS columns, without empty groups."""
    lines = [[]]
    for group in groups:
        if sum(len(other[2]) for other in [*lines[-1], group]) > COLUMNS:
            lines.append([])
        if group[2]:
            lines[-1].append(group)
    return [line for line in lines if line]
