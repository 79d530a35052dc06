"""Every picture, from plain NumPy data: one function, one PNG; ``_NAME_figure`` draws it.

Files appear whole or not at all. Without pyplot: no display needed, no state among threads.
"""

import os
import textwrap
import uuid
from pathlib import Path
from typing import NamedTuple

import numpy as np

_INK, _GREY, _PALE, _BLUE, _RED = "#222222", "#6B6B6B", "#B9C4CC", "#0072B2", "#C44000"


class ReconstructionColumn(NamedTuple):
    """One example: float images [H, W, C] in 0..1 (C is 1 or 3) and three class indices."""

    image: np.ndarray
    reconstruction: np.ndarray
    label: int
    prediction: int
    target: int  # the class whose capsule was decoded


def training_curves(path, rows, title="") -> None:
    """Losses and errors (percent) over epochs, from the rows (dicts) of metrics.jsonl.

    "loss" marks training rows ("accuracy" in 0..1), "validation_error" (percent) the others.
    A step's last row counts, values that are not finite do not, many training rows are averaged.
    """
    _save(_training_curves_figure(rows, title), path)


def reconstructions(path, columns, class_names, title="") -> None:
    """Inputs above reconstructions, headed label, prediction, target (the paper's Figure 3).

    Give wrong ones (label != prediction) twice in a row: label decoded, then prediction.
    """
    _save(_reconstructions_figure(columns, class_names, title), path)


def perturbations(path, images, values, dims=None, title="") -> None:
    """Class capsules decoded with values [V] added to one dimension (the paper's Figure 4).

    images: float [D, V, H, W] or [D, V, H, W, C] in 0..1. dims [D] (default 0, 1, ...) names the
    rows. ValueError if lengths disagree.
    """
    _save(_perturbations_figure(images, values, dims, title), path)


def _training_curves_figure(rows, title=""):
    figure = _page(7.0, 2.75, title).figure
    high = figure.get_figheight()
    left, right = (figure.add_axes((x, 0.45 / high, 0.36, 1.9 / high)) for x in (0.095, 0.54))
    losses = np.concatenate([
        _plot(left, rows, "loss", label="total", color=_INK)[1],
        _plot(left, rows, "margin_loss", label="margin", color=_BLUE)[1],
        _plot(left, rows, "reconstruction_loss", label="reconstruction", color=_RED, ls="--")[1]])
    wrong = [r | {"wrong": 100 - 100 * np.float64(r["accuracy"])} for r in rows if "accuracy" in r]
    train = _plot(right, wrong, "wrong", limit=25, label="training", color=_PALE)[1]
    x, y = _plot(right, rows, "validation_error", len(rows), 60, label="validation", color=_BLUE)
    if y.size:
        right.annotate(f"{y[-1]:.2f}%", (x[-1], y[-1]), xytext=(7, 0), annotation_clip=False,
                       textcoords="offset points", va="center", color=_BLUE, fontsize=8)
    last = np.nan_to_num([0.0, *(row["epoch"] or 0.0 for row in rows)]).max() or 1.0
    _decorate(left, "Training loss", last, losses, smallest=1e-6)
    _decorate(right, "Error (%)", last, np.append(train, y), smallest=5e-3)
    return figure


def _plot(axes, rows, key, limit=150, dots=1, **style):
    """Draws means of at most limit equal runs of rows; returns epochs and values [2, N]."""
    by_step = {r["step"]: np.array((r["epoch"], r[key]), float) for r in rows if key in r}
    finite = [by_step[step] for step in sorted(by_step) if np.isfinite(by_step[step]).all()]
    runs = np.array_split(finite, min(limit, len(finite))) if finite else []
    points = np.reshape([run.mean(axis=0) for run in runs], (-1, 2)).T
    if runs:
        axes.plot(*points, lw=1.3, marker="o", ms=3.2, clip_on=False,
                  markevery=1 if len(runs) <= dots else [-1], **style)
    return points


def _decorate(axes, name, last, values, smallest):
    """Log y, but linear down to zero below smallest * maximum, or linear if all lie within 1:4."""
    low, high = values.min(initial=np.inf), values.max(initial=0.0)
    floor = 10 ** np.floor(np.log10(smallest * high or 1.0))
    if low <= high / 4:
        axes.set_yscale("symlog", linthresh=floor, linscale=0.4)
        subs = (1, 2, 5) if high < 300 * max(low, floor) else (1,)
        axes.yaxis.get_major_locator().set_params(subs=subs, numticks=8)
    axes.set(xlim=(0, last), ylim=(low / 1.15 if floor <= low <= high / 4 else 0, 1.15 * high or 1))
    axes.locator_params(axis="x", nbins=6, steps=[1, 2, 5, 10])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title(name, loc="left", fontsize=9, color=_INK, pad=20)
    axes.set_xlabel("epoch", fontsize=8, color=_GREY)
    axes.tick_params(labelsize=8, labelcolor=_GREY, color=_PALE, length=3)
    axes.grid(axis="y", color="#E9ECEE", lw=0.6)
    axes.spines[:].set_color(_PALE)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(handles=axes.lines, loc="lower left", bbox_to_anchor=(0, 1.04), ncols=3, fontsize=8,
                frameon=False, labelcolor=_GREY, columnspacing=1.2, borderpad=0, borderaxespad=0)


def _reconstructions_figure(columns, class_names, title=""):
    names = [name if len(name) <= 18 else name[:17] + "…" for name in map(str, class_names)]
    longest = max(len(names[k]) for column in columns for k in column[2:])
    least = max(0.55, longest * 0.075 + 0.1)  # inches; 0.075 a letter of bold 8 points
    limit = int(5.6 / least) // 2 * 2  # even: no line parts a pair
    kinds = [[c for c in columns if (c.label != c.prediction) == wrong] for wrong in (False, True)]
    sizes = [-(-len(kind) // max(1, -(-len(kind) // limit)) // 2) * 2 or 2 for kind in kinds]
    lines = [[kind[k:k + size]] for kind, size in zip(kinds, sizes, strict=True)
             for k in range(0, len(kind), size)]
    lines = [sum(lines, [])] if len(columns) <= limit else lines
    cell = min(max(least, 0.95), 5.6 / max(sum(map(len, groups)) for groups in lines))
    width, height = cell - 0.06, (cell - 0.06) * np.divide(*columns[0].image.shape[:2])
    stacked = "\n", "label l\nprediction p\ntarget r", 0.43, 0.65
    join, key, heading, top = stacked if longest > 1 else (" ", "l p r", 0.3, 0.4)
    bottom, pitch = top + height + 0.05, top + 2 * height + 0.35
    axes = _page(7.0, pitch * len(lines) + 0.2, title)
    note = "l: label   p: prediction   r: target, the capsule decoded (if wrong: l's, then p's)"
    _write(axes, 0.1, pitch * len(lines), note, va="top", color=_GREY)
    for number, groups in enumerate(lines):
        x, y = 1.02, number * pitch
        _write(axes, x - 0.08, y + heading, key, color=_GREY, ha="right")
        _write(axes, x - 0.08, y + top + height / 2, "input", color=_GREY, ha="right")
        _write(axes, x - 0.08, y + bottom + height / 2, "reconstruction", color=_GREY, ha="right")
        for group in groups:
            wrong = group[0].label != group[0].prediction
            style = dict(color=_RED, weight="bold") if wrong else dict(color=_INK)
            _write(axes, x, y + 0.07, "wrong" if wrong else "correct", **style)
            axes.hlines(y + 0.18, x, x + len(group) * cell - 0.06, style["color"], lw=0.8)
            for column in group:
                triple = join.join(names[k] for k in column[2:])
                _write(axes, x + width / 2, y + heading, triple, ha="center", **style)
                _show(axes, column.image, x, y + top, width, height)
                _show(axes, column.reconstruction, x, y + bottom, width, height)
                x += cell
            x += 0.3
    return axes.figure


def _perturbations_figure(images, values, dims=None, title=""):
    images, values = np.asarray(images), np.round(np.asarray(values, float), 6)
    rows, columns, height, width = images.shape[:4]
    cell, x, y = min(max(5.5 / columns, 0.48), 0.8), 0.65, 0.42
    wide, tall = cell * columns, cell * rows * height / width
    axes = _page(max(x + wide + 0.2, 3.9), y + tall + 0.1, title)
    _show(axes, np.vstack([np.hstack(row) for row in images]), x, y, wide, tall)
    axes.hlines(y + tall / rows * np.arange(1, rows), x, x + wide, "white", lw=0.8)
    axes.vlines(x + cell * np.arange(1, columns), y, y + tall, "white", lw=0.8)
    _write(axes, x, 0.07, "added to one dimension of the class capsule", color=_GREY)
    digits = max(len(f"{value:.3g}".partition(".")[2]) for value in values)
    for k, value in zip(range(columns), values, strict=True):
        text, style = f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}"), {}
        if value == 0:
            text, style = "0", dict(color=_BLUE, weight="bold")
            left, right = x + k * cell, x + (k + 1) * cell
            axes.plot((left, right, right, left, left), (y, y, *[y + tall] * 2, y), color=_BLUE)
        _write(axes, x + (k + 0.5) * cell, y - 0.11, text, ha="center", **style)
    for k, dim in zip(range(rows), range(rows) if dims is None else dims, strict=True):
        _write(axes, x - 0.1, y + (k + 0.5) * tall / rows, f"dim {dim}", ha="right")
    return axes.figure


def _page(width, height, title):
    """The axes of a new figure: inches to the right, and down from the end of the title."""
    from matplotlib.figure import Figure

    lines = textwrap.wrap(title, int(width / 0.09))
    top = 0.15 + 0.2 * len(lines)
    axes = Figure((width, top + height), dpi=150, facecolor="white").add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, -top), frame_on=False, xticks=[], yticks=[])
    _write(axes, 0.1, 0.08 - top, "\n".join(lines), va="top", fontsize=10)
    return axes


def _write(axes, x, y, text, **style):
    axes.text(x, y, text, **dict(color=_INK, fontsize=8, va="center", parse_math=False) | style)


def _show(axes, image, x, y, width, height):
    if not np.issubdtype(image.dtype, np.floating):
        raise ValueError(f"images must be floats in 0..1, not {image.dtype}")
    axes.imshow(np.nan_to_num(image).clip(0, 1), cmap="gray", vmin=0, vmax=1, aspect="auto",
                interpolation="nearest", extent=(x, x + width, y + height, y))
    axes.fill_between((x, x + width), y, y + height, facecolor="none", edgecolor=_PALE, lw=0.5)


def _save(figure, path):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.png")
    try:
        figure.savefig(temporary, format="png", facecolor="white")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
