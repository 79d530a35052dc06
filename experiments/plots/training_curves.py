"""Losses, errors and changes of routing logits over the epochs of training."""

import numpy as np

from experiments.plots.page import (
    BLUE,
    GREY,
    INK,
    PALE,
    RED,
    add_axes,
    blank_page,
    color_map,
    save_figure,
    set_log_or_linear_scale,
    style_axes,
    write_text,
)


def plot_training_curves(path, rows, title="") -> None:
    """Plots losses and errors (percent) over epochs, from the rows (dicts) of metrics.jsonl.

    "loss" marks training rows ("accuracy" in 0..1), "validation_error" (percent) the others. The
    last row of a step is used, values that are not finite are ignored, and many training rows are
    averaged.
    """
    save_figure(_training_curves_figure(rows, title), path)


def plot_logit_changes(path, rows, title="") -> None:
    """Plots the mean change of the logits in each pass over epochs, log y (Figure A.1).

    It uses the rows of metrics.jsonl with "epoch" and "logit_change" [R-1], from the second
    pass on.
    """
    save_figure(_logit_changes_figure(rows, title), path)


def plot_losses(path, runs, title="") -> None:
    """Plots the training loss of several runs over epochs (the paper's Figure A.2), log y.

    runs: maps the name of a run to its rows of metrics.jsonl, see :func:`plot_training_curves`.
    """
    save_figure(_losses_figure(runs, title), path)


def _training_curves_figure(rows, title=""):
    page = blank_page(7.0, 2.75, title)
    left, right = (add_axes(page, x, 0.4, 2.52, 1.9) for x in (0.665, 3.78))
    losses = np.concatenate(
        [
            _plot(left, rows, "loss", label="total", color=INK)[1],
            _plot(left, rows, "margin_loss", label="margin", color=BLUE)[1],
            _plot(left, rows, "reconstruction_loss", label="reconstruction", color=RED, ls="--")[1],
        ]
    )
    wrong = [r | {"wrong": 100 - 100 * np.float64(r["accuracy"])} for r in rows if "accuracy" in r]
    train = _plot(right, wrong, "wrong", limit=25, label="training", color=PALE)[1]
    x, y = _plot(right, rows, "validation_error", len(rows), 60, label="validation", color=BLUE)
    if y.size:
        right.annotate(
            f"{y[-1]:.2f}%",
            (x[-1], y[-1]),
            xytext=(7, 0),
            annotation_clip=False,
            textcoords="offset points",
            va="center",
            color=BLUE,
            fontsize=8,
        )
    epochs = [row["epoch"] for row in rows]
    _decorate(left, "Training loss", epochs, losses, left.lines, smallest=1e-6)
    _decorate(right, "Error (%)", epochs, np.append(train, y), right.lines, smallest=5e-3)
    return page.figure


def _plot(axes, rows, key, limit=150, dots=1, **style):
    """Draws means of at most ``limit`` equal chunks of rows; returns epochs and values [2, N]."""
    by_step = {r["step"]: np.array((r["epoch"], r[key]), float) for r in rows if key in r}
    finite = [by_step[step] for step in sorted(by_step) if np.isfinite(by_step[step]).all()]
    runs = np.array_split(finite, min(limit, len(finite))) if finite else []
    points = np.reshape([run.mean(axis=0) for run in runs], (-1, 2)).T
    if runs:
        axes.plot(
            *points,
            lw=1.3,
            marker="o",
            ms=3.2,
            clip_on=False,
            markevery=1 if len(runs) <= dots else [-1],
            **style,
        )
    return points


def _decorate(axes, name, epochs, values, keys, **scale):
    set_log_or_linear_scale(axes, values, **scale)
    style_axes(axes, name, "epoch", keys)
    axes.set_xlim(0, np.nan_to_num([0.0, *(epoch or 0.0 for epoch in epochs)]).max() or 1.0)
    axes.locator_params(axis="x", nbins=6, steps=[1, 2, 5, 10])


def _losses_figure(runs, title=""):
    top = 0.17 * len(runs)
    page = blank_page(7.0, top + 3.05, title)
    axes = add_axes(page, 0.665, top + 0.35, 5.9, 2.25)
    values = [np.zeros(0)]
    for k, (name, rows) in enumerate(runs.items()):
        style = dict(color=(BLUE, RED, INK, GREY)[k % 4], ls=("-", "--", ":")[k // 4 % 3])
        values.append(_plot(axes, rows, "loss", **style)[1])
        y = 0.1 + 0.17 * k
        page.plot((0.1, 0.4), (y, y), lw=1.3, **style)
        last = f"{values[-1][-1]:.4f} at the end" if values[-1].size else "no losses"
        write_text(page, 0.5, y, f"{name if len(name) <= 80 else name[:79] + '…'}: {last}")
    epochs = [row.get("epoch") for rows in runs.values() for row in rows]
    _decorate(axes, "Training loss", epochs, np.concatenate(values), (), smallest=1e-6)
    return page.figure


def _logit_changes_figure(rows, title=""):
    page = blank_page(7.0, 3.1, title)
    axes = add_axes(page, 0.665, 0.4, 5.9, 2.25)
    rows = [row for row in rows if row.get("logit_change") and row.get("epoch") is not None]
    passes, values = max((len(row["logit_change"]) for row in rows), default=0), [np.zeros(0)]
    for k, shade in enumerate(color_map(INK, BLUE, "#9CCFF2")(np.linspace(0, 1, passes + 2)[1:-1])):
        one = [
            {"step": row["epoch"]} | row | {"change": row["logit_change"][k]}
            for row in rows
            if k < len(row["logit_change"])
        ]
        style = dict(label=f"{k + 2}" if k else "pass 2", color=shade)
        values.append(_plot(axes, one, "change", dots=60, **style)[1])
    epochs, values = [row["epoch"] for row in rows], np.concatenate(values)
    name = "Mean change of a logit"
    _decorate(axes, name, epochs, values, axes.lines, smallest=1e-6, decade=True)
    if not values.size:
        axes.set_yticks([])
        write_text(page, 3.6, 1.5, "no changes recorded", color=GREY, ha="center")
    return page.figure
