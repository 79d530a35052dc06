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


def logit_changes(path, rows, title="") -> None:
    """Mean change of the logits in each pass over epochs, log y (the paper's Figure A.1).

    Rows of metrics.jsonl with "epoch" and "logit_change" [R-1], from the second pass on, count.
    """
    _save(_logit_changes_figure(rows, title), path)


def routing_diagnostics(path, entropy, logit_change, activity, names, title="") -> None:
    """Of a layer of parents with names [J]: entropy [R], logit_change [R-1] and activity [J].

    The numbers of :func:`capsjax.routing.diagnostics.diagnose` on test examples.
    """
    _save(_routing_diagnostics_figure(entropy, logit_change, activity, names, title), path)


def coupling_matrix(path, coupling, names, title="", grid=None) -> None:
    """Mean coupling [I, J] of children (down) to parents with names (across).

    Given the grid (H, W, T) of the children, types last, a map for each parent: the mean over
    types. White is 1/J, an even share; blue is more and red less.
    """
    _save(_coupling_matrix_figure(coupling, names, title, grid), path)


def throughput(path, rows, title="") -> None:
    """Images a second over the batch size, training beside inference, a line an implementation.

    Rows of :mod:`experiments.benchmark`; bars are the range of the repetitions.
    """
    _save(_throughput_figure(rows, title), path)


def _training_curves_figure(rows, title=""):
    page = _page(7.0, 2.75, title)
    left, right = (_panel(page, x, 0.4, 2.52, 1.9) for x in (0.665, 3.78))
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
    return page.figure


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


def _decorate(axes, name, last, values, **scale):
    _scale(axes, values, **scale)
    _frame(axes, name, "epoch", axes.lines)
    axes.set_xlim(0, last)
    axes.locator_params(axis="x", nbins=6, steps=[1, 2, 5, 10])


def _scale(axes, values, smallest, decade=False):
    """Log y, but linear down to zero below smallest * maximum, or linear if all lie within 1:4.

    With decade log y in this case too, over a decade.
    """
    low, high = values.min(initial=np.inf), values.max(initial=0.0)
    low = min(low, high / 10) if decade and high else low
    floor = 10 ** np.floor(np.log10(smallest * high or 1.0))
    if low <= high / 4:
        axes.set_yscale("symlog", linthresh=floor, linscale=0.4)
        subs = (1, 2, 5) if high < 300 * max(low, floor) else (1,)
        axes.yaxis.get_major_locator().set_params(subs=subs, numticks=8)
    axes.set_ylim(low / 1.15 if floor <= low <= high / 4 else 0, 1.15 * high or 1)


def _frame(axes, name, xlabel, keys=()):
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title(name, loc="left", fontsize=9, color=_INK, pad=20 if keys else 6)
    axes.set_xlabel(xlabel, fontsize=8, color=_GREY)
    axes.tick_params(labelsize=8, labelcolor=_GREY, color=_PALE, length=3)
    axes.grid(axis="y", color="#E9ECEE", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[:].set_color(_PALE)
    axes.spines[["top", "right"]].set_visible(False)
    if keys:
        axes.legend(handles=keys, loc="lower left", bbox_to_anchor=(0, 1.04), ncols=11, fontsize=8,
                    frameon=False, labelcolor=_GREY, columnspacing=1.2, borderpad=0,
                    borderaxespad=0)


def _logit_changes_figure(rows, title=""):
    page = _page(7.0, 3.1, title)
    axes = _panel(page, 0.665, 0.4, 5.9, 2.25)
    rows = [row for row in rows if row.get("logit_change") and row.get("epoch") is not None]
    passes, values = max((len(row["logit_change"]) for row in rows), default=0), [np.zeros(0)]
    for k, shade in enumerate(_ramp(_INK, _BLUE, "#9CCFF2")(np.linspace(0, 1, passes + 2)[1:-1])):
        one = [{"step": row["epoch"]} | row | {"change": row["logit_change"][k]}
               for row in rows if k < len(row["logit_change"])]
        style = dict(label=f"{k + 2}" if k else "pass 2", color=shade)
        values.append(_plot(axes, one, "change", dots=60, **style)[1])
    last = np.nan_to_num([0.0, *(row["epoch"] for row in rows)]).max() or 1.0
    values = np.concatenate(values)
    _decorate(axes, "Mean change of a logit", last, values, smallest=1e-6, decade=True)
    if not values.size:
        axes.set_yticks([])
        _write(page, 3.6, 1.5, "no changes recorded", color=_GREY, ha="center")
    return page.figure


def _routing_diagnostics_figure(entropy, logit_change, activity, names, title=""):
    entropy, change, activity = map(_finite, (entropy, logit_change, activity))
    passes, J = len(entropy), len(activity)
    x, pitch, numbers = 0.665, min(5.9 / J, 0.6), np.arange(J)
    labels, height = _labels(names, J, pitch)
    page = _page(7.0, 4.4 + height, title)
    left, right, bars = (_panel(page, *place, 1.5) for place in (
        (x, 0.3, 2.52), (4.045, 0.3, 2.52), (x, 2.75, pitch * J)))
    left.set_ylim(0, 1.05)
    _scale(right, change[~np.isnan(change)], smallest=1e-6, decade=True)
    for axes, values, name in ((left, entropy, "Entropy of the couplings (0 decided, 1 even)"),
                               (right, change, "Mean change of a logit")):
        axes.plot(np.arange(passes - len(values), passes) + 1, values, color=_BLUE, lw=1.3,
                  marker="o", ms=3.2, clip_on=False)
        _frame(axes, name, "routing pass")
        axes.set(xlim=(0.7, passes + 0.3), xticks=range(1, passes + 1, -(-passes // 10)))
    if passes < 2:
        right.set_yticks([])
        _write(page, 5.305, 1.05, "a single pass: no change", color=_GREY, ha="center")
    dead, always = activity <= 0, activity >= 1 - 1e-6
    bars.bar(numbers, activity, 0.7, color=np.where(always, _INK, _BLUE))
    bars.plot(numbers[dead], np.full(dead.sum(), 0.06), "x", color=_RED, ms=min(5, 50 * pitch),
              label=f"{dead.sum()} never")
    bars.plot([], "s", color=_INK, ms=5, label=f"{always.sum()} always")
    _frame(bars, "Share of test examples in which a parent is active", "", bars.lines)
    bars.set(xlim=(-0.5, J - 0.5), ylim=(0, 1.05), xticks=[])
    for k, label, style in labels:
        _write(page, x + (k + 0.5) * pitch, 4.33, label, va="top", **style)
    return page.figure


def _coupling_matrix_figure(coupling, names, title="", grid=None):
    coupling = _finite(coupling)
    I, J = coupling.shape
    if grid is not None:
        coupling = coupling.reshape(*grid, J).mean(axis=2)
    away = max(0.1 / J, abs(coupling[~np.isnan(coupling)] - 1 / J).max(initial=0))
    low, even, high = max(0, 1 / J - away), 1 / J, 1 / J + away
    style = dict(cmap=_ramp(_RED, "white", _BLUE), vmin=even - away, vmax=high)
    if grid is None:
        x, pitch, tall = 0.85, min(5.9 / J, 0.6), min(0.3 * I, 4.5)
        labels, y = _labels(names, J, pitch)
        y += 0.6
        page = _page(7.0, y + tall + 0.15, title)
        # As many numbers as pixels, lest entries be left out or run into each other.
        pixels = coupling.repeat(max(1, int(150 * tall / I)), 0).repeat(int(150 * pitch), 1)
        _image(page, pixels, x, y, pitch * J, tall, **style)
        _write(page, x - 0.1, y + tall / 2, f"{I}\nchildren", color=_GREY, ha="right")
        for k, label, how in labels:
            _write(page, x + (k + 0.5) * pitch, y - 0.06, label, va="bottom", **how)
    else:
        labels = [textwrap.fill(str(name), 12, max_lines=2, placeholder="…") for name in names]
        longest = max(len(line) for label in labels for line in label.split("\n"))
        lines = -(-J // int(6.8 / max(0.075 * longest + 0.1, 0.65)))
        across = -(-J // lines)
        pitch, top = min(6.8 / across, 1.4), 0.33 if "\n" in "".join(labels) else 0.2
        wide, tall = pitch - 0.1, (pitch - 0.1) * grid[0] / grid[1]
        page = _page(7.0, 0.55 + lines * (top + tall + 0.08), title)
        for k, label in zip(range(J), labels, strict=True):
            x, y = 0.1 + k % across * pitch, 0.55 + top + k // across * (top + tall + 0.08)
            _image(page, coupling[..., k], x, y, wide, tall, **style)
            _write(page, x + wide / 2, y - 0.05, label, va="bottom", ha="center")
    _write(page, 0.1, 0.17, "mean coupling", color=_GREY)
    _image(page, np.linspace(low, high, 256)[None], 1.2, 0.1, 3.0, 0.14, **style)
    for value, text in ((low, f"{low:.3g}"), (even, f"1/{J}"), (high, f"{high:.3g}")):
        if value != low or even - low > 0.15 * (high - low):
            x = 1.2 + 3.0 * (value - low) / (high - low)
            _write(page, x, 0.35, text, color=_GREY, ha="center")
            page.vlines(x, 0.1, 0.27, _GREY, lw=0.8)
    return page.figure


def _finite(values):
    """NaN, which is not drawn, in place of what is not finite."""
    values = np.array(values, float)
    return np.where(np.isfinite(values), values, np.nan)


def _labels(names, count, pitch):
    """(number, name, style) of names that fit, pitch inches apart, and the inches they take."""
    names = [name if len(name) <= 24 else name[:23] + "…" for name in map(str, names)]
    longest = 0.072 * max(map(len, names)) + 0.05
    turned = longest > max(pitch, 0.3)
    step = int(np.ceil((0.13 if turned else longest) / pitch))
    style = dict(ha="center", rotation=90 if turned else 0)
    labels = [(k, name, style) for k, name in zip(range(count), names, strict=True)]
    return labels[::step], longest if turned else 0.15


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


def _throughput_figure(rows, title=""):
    page = _page(7.0, 3.1, title)
    names = list(dict.fromkeys(row["implementation"] for row in rows))
    colors = dict(zip(names, (_BLUE, _RED, _INK, _GREY), strict=False))
    low = min((row["images_per_second"]["min"] for row in rows), default=1)
    top = max((row["images_per_second"]["max"] for row in rows), default=10)
    for x, function in ((0.665, "training"), (4.045, "inference")):
        axes = _panel(page, x, 0.4, 2.52, 2.1)
        for name in names:
            found = sorted((r["batch_size"], *(r["images_per_second"][k] for k in
                           ("median", "min", "max"))) for r in rows
                           if (r["implementation"], r["function"]) == (name, function))
            size, median, least, most = np.reshape(found, (-1, 4)).T
            axes.errorbar(size, median, (median - least, most - median), color=colors[name], lw=1.3,
                          marker="o", ms=3.2, capsize=2, elinewidth=0.7, label=name)
        axes.set(xscale="log", yscale="log", ylim=(low / 1.3, 1.3 * top))
        axes.yaxis.get_major_locator().set_params(subs=(1, 2, 5))
        axes.yaxis.set_minor_formatter("")
        keys = axes.get_legend_handles_labels()[0] if function == "training" else ()
        _frame(axes, f"{function.capitalize()}, images/s", "batch size", keys)
        axes.set_xticks(sorted({row["batch_size"] for row in rows}), minor=False)
        axes.set_xticks([], minor=True)
    return page.figure


def _page(width, height, title):
    """The axes of a new figure: inches to the right, and down from the end of the title."""
    from matplotlib.figure import Figure

    lines = textwrap.wrap(title, int(width / 0.09))
    top = 0.15 + 0.2 * len(lines)
    axes = Figure((width, top + height), dpi=150, facecolor="white").add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, -top), frame_on=False, xticks=[], yticks=[])
    _write(axes, 0.1, 0.08 - top, "\n".join(lines), va="top", fontsize=10)
    return axes


def _panel(page, x, y, width, height):
    """Axes on a page, placed in its inches."""
    right, (bottom, top) = page.get_xlim()[1], page.get_ylim()
    tall = bottom - top
    return page.figure.add_axes(
        (x / right, (bottom - y - height) / tall, width / right, height / tall), facecolor="none")


def _ramp(*colors):
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("", colors).with_extremes(bad=_PALE)


def _write(axes, x, y, text, **style):
    axes.text(x, y, text, **dict(color=_INK, fontsize=8, va="center", parse_math=False) | style)


def _show(axes, image, x, y, width, height):
    if not np.issubdtype(image.dtype, np.floating):
        raise ValueError(f"images must be floats in 0..1, not {image.dtype}")
    _image(axes, np.nan_to_num(image).clip(0, 1), x, y, width, height, cmap="gray", vmin=0, vmax=1,
           interpolation="nearest")


def _image(axes, image, x, y, width, height, **style):
    axes.imshow(image, aspect="auto", extent=(x, x + width, y + height, y), **style)
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
