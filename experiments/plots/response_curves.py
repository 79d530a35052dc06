"""Accuracy over the size of a transformation, and error over the number of examples."""

import numpy as np

from experiments.plots.page import (
    BLUE,
    GREY,
    INK,
    PALE,
    RED,
    add_axes,
    blank_page,
    save_figure,
    set_log_or_linear_scale,
    style_axes,
    write_text,
)

COLORS = (BLUE, RED, INK, GREY)
MOST_CURVES = len(COLORS)
AXES = {
    "rotation": "rotation, degrees",
    "shear": "shear",
    "scale": "scale",
    "shift_x": "shift across, pixels",
    "shift_y": "shift down, pixels",
}


def plot_responses(path, curves, ranges, title="") -> None:
    """Plots the accuracy in percent under each single transformation.

    Args:
      path: of the file that is written.
      curves: maps a network's name to {"rotation": {"values": [T], "accuracy": [T]}, ...}.
      ranges: maps a transformation's name to (least, most), which is shaded.
      title: of the page.
    """
    save_figure(_responses_figure(curves, ranges, title), path)


def plot_data_efficiency(path, rows, title="") -> None:
    """Plots test error over the number of training examples, both log, one line per network.

    Rows are dicts with "train_examples", "network" and "test_error" (percent), one row per seed.
    Lines are means; bars extend from the least to the greatest error.
    """
    save_figure(_data_efficiency_figure(rows, title), path)


def _responses_figure(curves, ranges, title=""):
    top = 0.2 + 0.18 * len(curves)
    page = blank_page(7.0, top + 4.25, title)
    _legend(page, curves)
    for k, (name, label) in enumerate(AXES.items()):
        axes = add_axes(page, 0.5 + k % 3 * 2.25, top + 0.35 + k // 3 * 2.2, 1.8, 1.35)
        if name in ranges:
            axes.axvspan(*ranges[name], color="#EEF1F3", lw=0)
        for color, one in zip(COLORS, curves.values(), strict=False):
            axes.plot(one[name]["values"], one[name]["accuracy"], color=color, lw=1.3)
            axes.plot(*one[name].values(), "o", color=color, ms=2.5, clip_on=False)
        values = np.concatenate([one[name]["values"] for one in curves.values()])
        axes.set(xlim=(values.min(), values.max()), ylim=(0, 102), yticks=range(0, 101, 25))
        style_axes(axes, label, "")
    note = "Accuracy, %.\nShaded: what affNIST's digits have,\nand the shifts of training."
    write_text(page, 4.95, top + 3.05, note, color=GREY)
    return page.figure


def _legend(page, names):
    for k, (name, color) in enumerate(zip(names, COLORS, strict=False)):
        y = 0.15 + 0.18 * k
        page.plot((0.1, 0.35), (y, y), color=color, lw=1.5)
        write_text(page, 0.45, y, name)


def _data_efficiency_figure(rows, title=""):
    page = blank_page(7.0, 3.1, title)
    axes = add_axes(page, 0.665, 0.4, 5.9, 2.2)
    errors = {}
    for row in rows:
        found = errors.setdefault(str(row["network"]), {})
        found.setdefault(int(row["train_examples"]), []).append(float(row["test_error"]))
    for color, (network, found) in zip(COLORS, errors.items(), strict=False):
        sizes = sorted(found)
        mean, least, most = (np.array([f(found[n]) for n in sizes]) for f in (np.mean, min, max))
        axes.errorbar(
            sizes,
            mean,
            (mean - least, most - mean),
            color=color,
            lw=1.3,
            marker="o",
            ms=3.2,
            capsize=2,
            elinewidth=0.7,
            label=network,
        )
    sizes = sorted({n for found in errors.values() for n in found})
    axes.set_xscale("log")
    set_log_or_linear_scale(axes, np.array([float(r["test_error"]) for r in rows]), smallest=1e-3)
    style_axes(axes, "Test error (%)", "training examples", axes.get_legend_handles_labels()[0])
    axes.set_xticks(sizes, [f"{n:,}" for n in sizes])
    axes.set_xticks([], minor=True)
    axes.spines["bottom"].set_color(PALE)
    return page.figure
