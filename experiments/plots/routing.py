"""Diagnostics of a routed layer: entropy, activity, couplings."""

import textwrap

import numpy as np

from experiments.plots.page import (
    BLUE,
    GREY,
    INK,
    RED,
    add_axes,
    blank_page,
    color_map,
    draw_values,
    fit_labels,
    nonfinite_to_nan,
    save_figure,
    set_log_or_linear_scale,
    style_axes,
    write_text,
)


def plot_routing_diagnostics(path, entropy, logit_change, activity, names, title="") -> None:
    """Plots entropy [R], logit_change [R-1] and activity [J] of output capsules with names [J].

    The values are those of :func:`capsjax.routing.diagnostics.diagnose` on test examples.
    """
    save_figure(_routing_diagnostics_figure(entropy, logit_change, activity, names, title), path)


def plot_coupling_matrix(path, coupling, names, title="", grid=None) -> None:
    """Plots the mean coupling [I, J] of input capsules (down) to named output capsules (across).

    Given the grid (H, W, T) of the input capsules, types last, it plots one map per output capsule,
    the mean over types. White is 1/J, the uniform coupling; blue is more and red is less.
    """
    save_figure(_coupling_matrix_figure(coupling, names, title, grid), path)


def _routing_diagnostics_figure(entropy, logit_change, activity, names, title=""):
    entropy, change, activity = map(nonfinite_to_nan, (entropy, logit_change, activity))
    passes, J = len(entropy), len(activity)
    x, pitch, numbers = 0.665, min(5.9 / J, 0.6), np.arange(J)
    labels, height = fit_labels(names, J, pitch)
    page = blank_page(7.0, 4.4 + height, title)
    left, right, bars = (
        add_axes(page, *place, 1.5)
        for place in ((x, 0.3, 2.52), (4.045, 0.3, 2.52), (x, 2.75, pitch * J))
    )
    left.set_ylim(0, 1.05)
    set_log_or_linear_scale(right, change[~np.isnan(change)], smallest=1e-6, decade=True)
    for axes, values, name in (
        (left, entropy, "Entropy of the couplings (0 decided, 1 even)"),
        (right, change, "Mean change of a logit"),
    ):
        axes.plot(
            np.arange(passes - len(values), passes) + 1,
            values,
            color=BLUE,
            lw=1.3,
            marker="o",
            ms=3.2,
            clip_on=False,
        )
        style_axes(axes, name, "routing pass")
        axes.set(xlim=(0.7, passes + 0.3), xticks=range(1, passes + 1, -(-passes // 10)))
    if passes < 2:
        right.set_yticks([])
        write_text(page, 5.305, 1.05, "a single pass: no change", color=GREY, ha="center")
    dead, always = activity <= 0, activity >= 1 - 1e-6
    bars.bar(numbers, activity, 0.7, color=np.where(always, INK, BLUE))
    bars.plot(
        numbers[dead],
        np.full(dead.sum(), 0.06),
        "x",
        color=RED,
        ms=min(5, 50 * pitch),
        label=f"{dead.sum()} never",
    )
    bars.plot([], "s", color=INK, ms=5, label=f"{always.sum()} always")
    style_axes(bars, "Share of test examples in which an output capsule is active", "", bars.lines)
    bars.set(xlim=(-0.5, J - 0.5), ylim=(0, 1.05), xticks=[])
    for k, label, style in labels:
        write_text(page, x + (k + 0.5) * pitch, 4.33, label, va="top", **style)
    return page.figure


def _coupling_matrix_figure(coupling, names, title="", grid=None):
    coupling = nonfinite_to_nan(coupling)
    I, J = coupling.shape
    if grid is not None:
        coupling = coupling.reshape(*grid, J).mean(axis=2)
    away = max(0.1 / J, abs(coupling[~np.isnan(coupling)] - 1 / J).max(initial=0))
    low, even, high = max(0, 1 / J - away), 1 / J, 1 / J + away
    style = dict(cmap=color_map(RED, "white", BLUE), vmin=even - away, vmax=high)
    if grid is None:
        x, pitch, tall = 0.85, min(5.9 / J, 0.6), min(0.3 * I, 4.5)
        labels, y = fit_labels(names, J, pitch)
        y += 0.6
        page = blank_page(7.0, y + tall + 0.15, title)
        # One value per pixel, so that no entry is lost or blended with another.
        pixels = coupling.repeat(max(1, int(150 * tall / I)), 0).repeat(int(150 * pitch), 1)
        draw_values(page, pixels, x, y, pitch * J, tall, **style)
        write_text(page, x - 0.1, y + tall / 2, f"{I} input\ncapsules", color=GREY, ha="right")
        for k, label, how in labels:
            write_text(page, x + (k + 0.5) * pitch, y - 0.06, label, va="bottom", **how)
    else:
        labels = [textwrap.fill(str(name), 12, max_lines=2, placeholder="…") for name in names]
        longest = max(len(line) for label in labels for line in label.split("\n"))
        lines = -(-J // int(6.8 / max(0.075 * longest + 0.1, 0.65)))
        across = -(-J // lines)
        pitch, top = min(6.8 / across, 1.4), 0.33 if "\n" in "".join(labels) else 0.2
        wide, tall = pitch - 0.1, (pitch - 0.1) * grid[0] / grid[1]
        page = blank_page(7.0, 0.55 + lines * (top + tall + 0.08), title)
        for k, label in zip(range(J), labels, strict=True):
            x, y = 0.1 + k % across * pitch, 0.55 + top + k // across * (top + tall + 0.08)
            draw_values(page, coupling[..., k], x, y, wide, tall, **style)
            write_text(page, x + wide / 2, y - 0.05, label, va="bottom", ha="center")
    write_text(page, 0.1, 0.17, "mean coupling", color=GREY)
    draw_values(page, np.linspace(low, high, 256)[None], 1.2, 0.1, 3.0, 0.14, **style)
    for value, text in ((low, f"{low:.3g}"), (even, f"1/{J}"), (high, f"{high:.3g}")):
        if value != low or even - low > 0.15 * (high - low):
            x = 1.2 + 3.0 * (value - low) / (high - low)
            write_text(page, x, 0.35, text, color=GREY, ha="center")
            page.vlines(x, 0.1, 0.27, GREY, lw=0.8)
    return page.figure
