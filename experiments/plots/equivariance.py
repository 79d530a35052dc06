"""How poses follow transformations: paths of their dimensions, and linear probes."""

import numpy as np

from experiments.plots.page import (
    GREY,
    INK,
    PALE,
    add_axes,
    blank_page,
    save_figure,
    style_axes,
    write_text,
)
from experiments.plots.response_curves import AXES, COLORS

SHOWN, DRAWN = 3, 16  # dimensions of a path that are coloured, and that are drawn


def plot_pose_paths(path, networks, title="") -> None:
    """Plots the mean change of each feature dimension of a class, in its standard deviations.

    Args:
      path: of the file that is written.
      networks: maps a network's name to {"rotation": (values [T], changes [T, D]), ...}. The
        dimensions that change most are coloured; of many the 16 that change most are drawn.
      title: of the page.
    """
    save_figure(_pose_paths_figure(networks, title), path)


def plot_probes(path, networks, title="") -> None:
    """Plots R^2 of linear probes; networks maps a network's name to {"rotation": 0.9, ...}."""
    save_figure(_probes_figure(networks, title), path)


def _pose_paths_figure(networks, title=""):
    page = blank_page(7.0, 2.45 * len(networks) + 0.1, title)
    for row, (name, paths) in enumerate(networks.items()):
        y = 2.45 * row
        write_text(page, 0.1, y + 0.12, f"{name}: change of each dimension, standard deviations")
        most = max(np.abs(changes).max() for _, changes in paths.values()) or 1.0
        for k, (factor, (values, changes)) in enumerate(paths.items()):
            axes = add_axes(page, 0.4 + 1.32 * k, y + 0.62, 1.16, 1.3)
            order = np.argsort(-np.square(changes).sum(axis=0))[:DRAWN]
            for n in reversed(order):
                rank = int(np.flatnonzero(order == n)[0])
                color = COLORS[rank] if rank < SHOWN else PALE
                axes.plot(values, changes[:, n], color=color, lw=1.3 if rank < SHOWN else 0.6)
            axes.set(xlim=(values[0], values[-1]), ylim=(-1.1 * most, 1.1 * most))
            style_axes(axes, "", AXES[factor] if factor != "scale" else "log of the scale")
            axes.xaxis.label.set_fontsize(7)
            axes.tick_params(labelsize=7)
            axes.locator_params(nbins=4)
            for rank, n in enumerate(order[:SHOWN]):
                x = 0.4 + 1.32 * k + 0.4 * rank
                write_text(page, x, y + 0.45, f"{n}", color=COLORS[rank], weight="bold")
            if k:
                axes.set_yticklabels([])
        write_text(page, 0.1, y + 0.45, "dim", color=GREY)
    return page.figure


def _probes_figure(networks, title=""):
    page = blank_page(7.0, 2.6 + 0.18 * len(networks), title)
    targets = list(next(iter(networks.values())))
    for k, (name, color) in enumerate(zip(networks, COLORS, strict=False)):
        y = 0.15 + 0.18 * k
        page.plot((0.1, 0.35), (y, y), color=color, lw=4, solid_capstyle="butt")
        write_text(page, 0.45, y, name)
    axes = add_axes(page, 0.5, 0.5 + 0.18 * len(networks), 6.3, 1.7)
    wide = 0.8 / len(networks)
    for k, (color, found) in enumerate(zip(COLORS, networks.values(), strict=False)):
        x = np.arange(len(targets)) + (k - (len(networks) - 1) / 2) * wide
        values = np.array([found[target] for target in targets], float)
        axes.bar(x, np.clip(np.nan_to_num(values), 0, None), 0.92 * wide, color=color)
        for place, value in zip(x, values, strict=True):
            text = "-" if np.isnan(value) else f"{value:.2f}"
            axes.text(
                place, max(np.nan_to_num(value), 0) + 0.02, text, ha="center", fontsize=7, color=INK
            )
    style_axes(axes, "R² of a linear probe on test images (a negative one has no bar)", "")
    names = [
        target.replace("shift_x", "shift across").replace("shift_y", "shift down")
        for target in targets
    ]
    axes.set_xticks(range(len(targets)), names)
    axes.set(xlim=(-0.5, len(targets) - 0.5), ylim=(0, 1.1), yticks=(0, 0.25, 0.5, 0.75, 1))
    return page.figure
