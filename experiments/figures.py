"""Every picture, from plain NumPy data: one function, one PNG.

Each function saves what its twin ``_NAME_figure`` draws. Matplotlib is imported on first use
and never pyplot: no display, no state that threads share. No text is mathtext.
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

    "loss" marks training rows ("accuracy" in 0..1), "validation_error" (percent) validation
    rows. Of a repeated step the last row counts; values that are not finite are left out;
    many training rows are averaged in equal runs.
    """
    _save(_training_curves_figure(rows, title), path)


def reconstructions(path, columns, class_names, title="") -> None:
    """Inputs above reconstructions, headed label, prediction, target (the paper's Figure 3).

    Correct examples are drawn first. Give a wrong one (label != prediction) twice in a row:
    decoded from the capsule of its label, then of its prediction.
    """
    _save(_reconstructions_figure(columns, class_names, title), path)


def perturbations(path, images, values, dims=None, title="") -> None:
    """Class capsules decoded with one dimension changed (the paper's Figure 4).

    images float [D, V, H, W] or [D, V, H, W, C] in 0..1: in row d, values [V] are added to
    dimension dims[d] (default d). ValueError if the lengths do not agree.
    """
    _save(_perturbations_figure(images, values, dims, title), path)


def _training_curves_figure(rows, title=""):
    figure = _page(7.0, 2.75, title).figure
    height = figure.get_figheight()
    left, right = figure.subplots(1, 2, gridspec_kw=dict(
        left=0.075, right=0.9, wspace=0.22, bottom=0.45 / height, top=2.35 / height))
    losses = np.concatenate([
        _plot(left, rows, "loss", label="total", color=_INK)[1],
        _plot(left, rows, "margin_loss", label="margin", color=_BLUE)[1],
        _plot(left, rows, "reconstruction_loss", label="reconstruction", color=_RED, ls="--")[1]])
    failed = [{**row, "accuracy": 100 - 100 * np.float64(row["accuracy"])}
              for row in rows if "accuracy" in row]
    train = _plot(right, failed, "accuracy", limit=25, label="training", color=_PALE)[1]
    epochs, errors = _plot(right, rows, "validation_error", limit=len(rows), dots=60,
                           label="validation", color=_BLUE)
    if errors.size:
        right.annotate(f"{errors[-1]:.2f}%", (epochs[-1], errors[-1]), xytext=(7, 0), va="center",
                       textcoords="offset points", color=_BLUE, fontsize=8, weight="bold")
    _decorate(left, "Training loss", losses, smallest=1e-6)
    _decorate(right, "Error (%)", np.append(train, errors), smallest=2e-3)
    return figure


def _plot(axes, rows, key, limit=150, dots=1, **style):
    """Draws means of at most limit equal runs of rows; returns epochs and values [2, N]."""
    by_step = {row["step"]: (row["epoch"], row[key]) for row in rows if key in row}
    table = np.array([by_step[step] for step in sorted(by_step)], float).reshape(-1, 2)
    table = table[np.isfinite(table).all(axis=1)]
    runs = np.array_split(table, min(limit, len(table))) if len(table) else []
    points = np.reshape([run.mean(axis=0) for run in runs], (-1, 2)).T
    if runs:
        axes.plot(*points, lw=1.3, marker="o", ms=3.2, clip_on=False,
                  markevery=1 if len(runs) <= dots else [-1], **style)
    return points


def _decorate(axes, name, values, smallest):
    """Y linear up to a factor of 4, else log, but linear to zero below smallest * maximum."""
    low, high = values.min(initial=np.inf), values.max(initial=0.0)
    scale = "linear"
    if high >= 4 * max(low, smallest * high) > 0:
        floor = 10 ** np.floor(np.log10(smallest * high))
        scale = "log" if low >= floor else "symlog"
        axes.set_yscale(scale, **dict(linthresh=floor, linscale=0.3) if low < floor else {})
        subs = (1, 2, 5) if high < 300 * max(low, floor) else (1,)
        axes.yaxis.get_major_locator().set_params(subs=subs, numticks=8)
    axes.set_ylim(low / 1.15 if scale == "log" else 0, 1.15 * high or 1)
    axes.set_xlim(0, max(0, axes.dataLim.x1) or 1)
    axes.minorticks_off()
    axes.locator_params(axis="x", nbins=6, steps=[1, 2, 5, 10])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title(name, loc="left", fontsize=9, color=_INK, pad=18)
    axes.set_xlabel("epoch", fontsize=8, color=_GREY)
    axes.tick_params(labelsize=8, labelcolor=_GREY, color=_PALE, length=3)
    axes.grid(axis="y", color="#E9ECEE", lw=0.6)
    axes.spines[:].set_color(_PALE)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.02), ncols=3, frameon=False, fontsize=8,
                    labelcolor=_GREY, handlelength=1.2, columnspacing=1.2, borderpad=0)


def _reconstructions_figure(columns, class_names, title=""):
    names = [name if len(name) <= 18 else name[:17] + "…" for name in map(str, class_names)]
    longest = max(len(names[k]) for column in columns for k in column[2:])
    least = max(0.55, longest * 0.075 + 0.1)  # inches; 0.075 a letter of bold 8 points
    lines = _lines(columns, int(5.6 / least) // 2 * 2)
    cell = min(max(least, 0.95), 5.6 / max(map(len, lines)))
    width, height = cell - 0.06, (cell - 0.06) * np.divide(*columns[0].image.shape[:2])
    join, key, heading, top = ("\n", "label l\nprediction p\ntarget r", 0.43, 0.65)
    if longest <= 2:
        join, key, heading, top = (" ", "l p r", 0.3, 0.4)
    bottom, pitch = top + height + 0.05, top + 2 * height + 0.35
    axes = _page(7.0, pitch * len(lines) + 0.4, title)
    _write(axes, 0.1, pitch * len(lines), va="top", color=_GREY, text=(
        "l: label   p: prediction   r: reconstruction target, the class whose capsule is decoded\n"
        "Wrong ones appear twice: decoded from the label's capsule, then from the prediction's"))
    for number, line in enumerate(lines):
        x, y = 1.02, number * pitch
        for text, below in ((key, heading), ("input", top + height / 2),
                            ("reconstruction", bottom + height / 2)):
            _write(axes, x - 0.08, y + below, text, color=_GREY, ha="right")
        for kind, style in enumerate((dict(color=_INK), dict(color=_RED, weight="bold"))):
            group = [c for c in line if (c.label != c.prediction) == kind]
            if group:
                _write(axes, x, y + 0.07, ("correct", "wrong")[kind], **style)
                axes.hlines(y + 0.18, x, x + len(group) * cell - 0.06, style["color"], lw=0.8)
            for column in group:
                triple = join.join(names[k] for k in column[2:])
                _write(axes, x + width / 2, y + heading, triple, ha="center", **style)
                _show(axes, column.image, x, y + top, width, height)
                _show(axes, column.reconstruction, x, y + bottom, width, height)
                x += cell
            x += 0.3 * bool(group)
    return axes.figure


def _lines(columns, limit):
    """All columns in one line, or correct and wrong apart, evenly, without parting a pair."""
    lines = [columns] if len(columns) <= limit else []
    for wrong in () if lines else (False, True):
        group = [c for c in columns if (c.label != c.prediction) == wrong]
        size = -(-len(group) // max(2, -(-len(group) // limit) * 2)) * 2
        lines += [group[k:k + size] for k in range(0, len(group), size)]
    return lines


def _perturbations_figure(images, values, dims=None, title=""):
    images, values = np.asarray(images), np.round(np.asarray(values, float), 6)
    rows, columns, height, width = images.shape[:4]
    cell, x, y = min(max(5.5 / columns, 0.48), 0.8), 0.65, 0.42
    wide, tall = cell * columns, cell * rows * height / width
    axes = _page(max(x + wide + 0.2, 3.9), y + tall + 0.1, title)
    mosaic = images.reshape(*images.shape[:4], -1).swapaxes(1, 2)
    _show(axes, mosaic.reshape(rows * height, columns * width, -1), x, y, wide, tall)
    axes.hlines(y + tall / rows * np.arange(1, rows), x, x + wide, "white", lw=0.8)
    axes.vlines(x + cell * np.arange(1, columns), y, y + tall, "white", lw=0.8)
    _write(axes, x, 0.07, "added to one dimension of the class capsule", color=_GREY)
    digits = max(len(f"{value:.3g}".partition(".")[2]) for value in values)
    for k, value in zip(range(columns), values, strict=True):
        text, style = f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}"), {}
        if value == 0:
            text, style = "0", dict(color=_BLUE, weight="bold")
            axes.vlines((x + k * cell, x + (k + 1) * cell), y, y + tall, _BLUE, lw=1.5)
        _write(axes, x + (k + 0.5) * cell, y - 0.11, text, ha="center", **style)
    for k, dim in zip(range(rows), range(rows) if dims is None else dims, strict=True):
        _write(axes, x - 0.1, y + (k + 0.5) * tall / rows, f"dim {dim}", ha="right")
    return axes.figure


def _page(width, height, title):
    """The axes of a new figure: inches to the right, and down from the end of the title."""
    from matplotlib.figure import Figure

    lines = textwrap.wrap(title, int(width / 0.09))
    top = 0.15 + 0.2 * len(lines)
    figure = Figure((width, top + height), dpi=150, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, -top))
    axes.set_axis_off()
    _write(axes, 0.1, 0.08 - top, "\n".join(lines), va="top", fontsize=10)
    return axes


def _write(axes, x, y, text, **style):
    axes.text(x, y, text, **dict(color=_INK, fontsize=8, va="center", parse_math=False) | style)


def _show(axes, image, x, y, width, height):
    if not np.issubdtype(image.dtype, np.floating):
        raise ValueError(f"images must be floats in 0..1, not {image.dtype}")
    image = np.nan_to_num(np.broadcast_to(image, (*image.shape[:2], 3))).clip(0, 1)
    right, end = x + width, y + height
    axes.imshow(image, extent=(x, right, end, y), interpolation="nearest", aspect="auto")
    axes.plot((x, right, right, x, x), (y, y, end, end, y), color=_PALE, lw=0.5)


def _save(figure, path):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.png")
    try:
        figure.savefig(temporary, format="png", facecolor="white")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
