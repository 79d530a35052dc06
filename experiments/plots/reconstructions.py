"""Outputs of a decoder: reconstructions, and reconstructions of perturbed capsules."""

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


class ReconstructionColumn(NamedTuple):
    """One example: float images [H, W, C] in 0..1 (C is 1 or 3) and three class indices."""

    image: np.ndarray
    reconstruction: np.ndarray
    label: int
    prediction: int
    target: int  # the class whose capsule was decoded


def plot_reconstructions(path, columns, class_names, title="") -> None:
    """Plots inputs above reconstructions with label, prediction and target (the paper's Figure 3).

    A wrong example (label != prediction) takes two columns in a row: first the capsule of the label
    is decoded, then that of the prediction.
    """
    save_figure(_reconstructions_figure(columns, class_names, title), path)


def plot_perturbations(path, images, values, dims=None, title="", effects=None) -> None:
    """Plots reconstructions with values added to one dimension (the paper's Figure 4).

    Args:
      path: of the file that is written.
      images: float [D, V, H, W] or [D, V, H, W, C] in 0..1.
      values: [V], added to a dimension of the class capsule.
      dims: [D], the dimensions that name the rows; by default 0, 1, ...
      title: of the page.
      effects: [D], mean squared changes of a pixel, written below the dimensions.

    Raises:
      ValueError: lengths disagree.
    """
    save_figure(_perturbations_figure(images, values, dims, title, effects), path)


def _reconstructions_figure(columns, class_names, title=""):
    names = [name if len(name) <= 16 else name[:15] + "…" for name in map(str, class_names)]
    longest = max(len(names[k]) for column in columns for k in column[2:])
    least = max(0.55, longest * 0.075 + 0.1)  # inches; 0.075 a letter of bold 8 points
    limit = int(5.6 / least) // 2 * 2  # even, so that no line break separates a pair
    kinds = [[c for c in columns if (c.label != c.prediction) == wrong] for wrong in (False, True)]
    sizes = [-(-len(kind) // max(1, -(-len(kind) // limit)) // 2) * 2 or 2 for kind in kinds]
    lines = [
        [kind[k : k + size]]
        for kind, size in zip(kinds, sizes, strict=True)
        for k in range(0, len(kind), size)
    ]
    lines = [sum(lines, [])] if len(columns) <= limit else lines
    cell = min(max(least, 0.95), 5.6 / max(sum(map(len, groups)) for groups in lines))
    width, height = cell - 0.06, (cell - 0.06) * np.divide(*columns[0].image.shape[:2])
    stacked = "\n", "label l\nprediction p\ntarget r", 0.43, 0.65
    join, key, heading, top = stacked if longest > 1 else (" ", "l p r", 0.3, 0.4)
    row = max(height, 0.17)  # letters need this
    space = (row - height) / 2
    bottom, pitch = top + row + 0.05, top + 2 * row + 0.35
    axes = blank_page(7.0, pitch * len(lines) + 0.2, title)
    note = "l: label   p: prediction   r: target, the capsule decoded (if wrong: l's, then p's)"
    write_text(axes, 0.1, pitch * len(lines), note, va="top", color=GREY)
    for number, groups in enumerate(lines):
        x, y = 1.02, number * pitch
        write_text(axes, x - 0.08, y + heading, key, color=GREY, ha="right")
        write_text(axes, x - 0.08, y + top + row / 2, "input", color=GREY, ha="right")
        write_text(axes, x - 0.08, y + bottom + row / 2, "reconstruction", color=GREY, ha="right")
        for group in groups:
            wrong = group[0].label != group[0].prediction
            style = dict(color=RED, weight="bold") if wrong else dict(color=INK)
            write_text(axes, x, y + 0.07, "wrong" if wrong else "correct", **style)
            axes.hlines(y + 0.18, x, x + len(group) * cell - 0.06, style["color"], lw=0.8)
            for column in group:
                triple = join.join(names[k] for k in column[2:])
                write_text(axes, x + width / 2, y + heading, triple, ha="center", **style)
                draw_image(axes, column.image, x, y + top + space, width, height)
                draw_image(axes, column.reconstruction, x, y + bottom + space, width, height)
                x += cell
            x += 0.3
    return axes.figure


def _perturbations_figure(images, values, dims=None, title="", effects=None):
    images, values = np.asarray(images), np.round(np.asarray(values, float), 6)
    rows, columns, height, width = images.shape[:4]
    cell, x, y = min(max(5.5 / columns, 0.48), 0.8), 0.65, 0.42
    least = 0.16 if effects is None else 0.3  # inches of a row, for its letters
    if cell * height / width < least:  # white around images that are wide and low
        above = -(-(int(np.ceil(least * width / cell)) - height) // 2)
        around = [(0, 0), (0, 0), (above, above)] + [(0, 0)] * (images.ndim - 3)
        images = np.pad(images, around, constant_values=1)
        height += 2 * above
    wide, tall = cell * columns, cell * rows * height / width
    axes = blank_page(max(x + wide + 0.2, 3.9), y + tall + 0.1, title)
    draw_image(axes, np.vstack([np.hstack(row) for row in images]), x, y, wide, tall)
    axes.hlines(y + tall / rows * np.arange(1, rows), x, x + wide, "white", lw=0.8)
    axes.vlines(x + cell * np.arange(1, columns), y, y + tall, "white", lw=0.8)
    write_text(axes, x, 0.07, "added to one dimension of the class capsule", color=GREY)
    if effects is not None:
        for k, effect in zip(range(rows), effects, strict=True):
            style = dict(ha="right", color=GREY, fontsize=7)
            write_text(axes, x - 0.1, y + (k + 0.5) * tall / rows + 0.08, f"{effect:.1e}", **style)
    digits = max(len(f"{value:.3g}".partition(".")[2]) for value in values)
    for k, value in zip(range(columns), values, strict=True):
        text, style = f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}"), {}
        if value == 0:
            text, style = "0", dict(color=BLUE, weight="bold")
            left, right = x + k * cell, x + (k + 1) * cell
            axes.plot((left, right, right, left, left), (y, y, *[y + tall] * 2, y), color=BLUE)
        write_text(axes, x + (k + 0.5) * cell, y - 0.11, text, ha="center", **style)
    for k, dim in zip(range(rows), range(rows) if dims is None else dims, strict=True):
        above = 0 if effects is None else 0.07
        write_text(axes, x - 0.1, y + (k + 0.5) * tall / rows - above, f"dim {dim}", ha="right")
    return axes.figure
