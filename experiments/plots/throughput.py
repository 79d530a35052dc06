"""Images per second and memory, over the batch size or for each network."""

import numpy as np

from experiments.plots.page import (
    BLUE,
    GREY,
    INK,
    LEGEND,
    PALE,
    RED,
    add_axes,
    blank_page,
    color_map,
    save_figure,
    style_axes,
    write_text,
)

# The panels: title, measured function, and (median, least, most) of a row.
PANELS = (
    ("Training, images/s", "training", lambda row: tuple(row["images_per_second"].values())),
    ("Inference, images/s", "inference", lambda row: tuple(row["images_per_second"].values())),
    ("Training, share of the limit", "training", lambda row: [row["share_of_limit"]] * 3),
    ("Training, memory, MB", "training", lambda row: [row["megabytes"]] * 3),
)


def plot_throughput(path, rows, title="") -> None:
    """Plots the speed of training and inference, the share of the limit and memory.

    Rows are those of :mod:`experiments.benchmark`; bars are the range of the repetitions. With
    several batch sizes there is one curve per network over the batch size, otherwise one line of
    text per network.
    """
    save_figure(_throughput_figure(rows, title), path)


def _throughput_figure(rows, title=""):
    several = len({row["pixels"] for row in rows}) > 1
    rows = [
        row | {"network": f"{row['network']}, {row['pixels']} px" if several else row["network"]}
        for row in rows
    ]
    over = _over_networks if len({row["batch_size"] for row in rows}) == 1 else _over_batches
    return over(rows, list(dict.fromkeys(row["network"] for row in rows)), title)


def _found(rows, network, function, values):
    """Returns batch size, median, least and most of the rows that have them, [N, 4]."""
    found = [
        (row["batch_size"], *values(row))
        for row in rows
        if (row["network"], row["function"]) == (network, function) and None not in values(row)
    ]
    return np.reshape(sorted(found), (-1, 4)).astype(float)


def _over_batches(rows, networks, title):
    columns = max(1, int(6.7 / (0.55 + 0.065 * max(map(len, networks)))))
    head = 0.2 * -(-len(networks) // columns)
    page = blank_page(7.0, 5.8 + head, title)
    colors = (BLUE, RED, INK, GREY)
    if len(networks) > len(colors):
        colors = color_map(INK, BLUE, "#9CCFF2", RED)(np.linspace(0, 1, len(networks)))
    for number, (name, function, values) in enumerate(PANELS):
        top = head + 0.3 + number // 2 * 2.85
        axes = add_axes(page, 0.665 + number % 2 * 3.38, top, 2.52, 1.9)
        drawn = []
        for network, color in zip(networks, colors):
            size, median, least, most = _found(rows, network, function, values).T
            style = {"lw": 1.3, "marker": "o", "ms": 3.2, "capsize": 2, "elinewidth": 0.7}
            bars = (median - least, most - median)
            axes.errorbar(size, median, bars, color=color, label=network, **style)
            drawn += [least, most]
        drawn = np.concatenate(drawn)
        if drawn.size:
            axes.set(xscale="log", yscale="log", ylim=(drawn.min() / 1.3, 1.3 * drawn.max()))
            axes.yaxis.get_major_locator().set_params(subs=(1, 2, 5))
            axes.yaxis.set_minor_formatter("")
        style_axes(axes, name, "batch size")
        axes.set_xticks(sorted({row["batch_size"] for row in rows}), minor=False)
        axes.set_xticks([], minor=True)
    place = dict(loc="upper left", bbox_to_anchor=(0.1, 0.02), bbox_transform=page.transData)
    page.legend(*axes.get_legend_handles_labels(), ncols=columns, **place, **LEGEND)
    return page.figure


def _over_networks(rows, networks, title):
    tall = 0.17 * len(networks) + 0.1
    page = blank_page(7.0, tall + 0.85, title)
    places = np.arange(len(networks))
    widest = max(map(len, networks))
    left = 0.2 + 0.072 * min(widest, 34)
    width = (6.85 - left) / 4 - 0.15
    for network, place in zip(networks, places):
        name = network if len(network) <= 34 else network[:33] + "…"
        y = 0.4 + (place + 0.5) * tall / len(networks)
        write_text(page, left - 0.08, y, name, color=GREY, ha="right")
    for number, (name, function, values) in enumerate(PANELS):
        axes = add_axes(page, left + number * (width + 0.15), 0.4, width, tall)
        for network, place in zip(networks, places):
            for _, median, least, most in _found(rows, network, function, values):
                axes.plot((least, most), (place, place), color=PALE, lw=3, solid_capstyle="butt")
                axes.plot(median, place, "o", color=BLUE, ms=3.5)
        style_axes(axes, name.replace("Training", "Train").replace("the limit", "limit"), "")
        axes.set(ylim=(len(networks) - 0.5, -0.5), yticks=[], xlim=(0, None))
        axes.locator_params(axis="x", nbins=3)
        axes.title.set_fontsize(7.5)
    return page.figure
