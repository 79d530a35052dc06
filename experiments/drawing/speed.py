"""Images a second over the batch size."""

import numpy as np

from experiments.drawing.page import BLUE, GREY, INK, RED, blank_page, frame, panel, save


def throughput(path, rows, title="") -> None:
    """Images a second over the batch size, training beside inference, a line an implementation.

    Rows of :mod:`experiments.benchmark`; bars are the range of the repetitions.
    """
    save(_throughput_figure(rows, title), path)


def _throughput_figure(rows, title=""):
    page = blank_page(7.0, 3.1, title)
    names = list(dict.fromkeys(row["implementation"] for row in rows))
    colors = dict(zip(names, (BLUE, RED, INK, GREY), strict=False))
    low = min((row["images_per_second"]["min"] for row in rows), default=1)
    top = max((row["images_per_second"]["max"] for row in rows), default=10)
    for x, function in ((0.665, "training"), (4.045, "inference")):
        axes = panel(page, x, 0.4, 2.52, 2.1)
        for name in names:
            found = sorted(
                (r["batch_size"], *(r["images_per_second"][k] for k in ("median", "min", "max")))
                for r in rows
                if (r["implementation"], r["function"]) == (name, function)
            )
            size, median, least, most = np.reshape(found, (-1, 4)).T
            axes.errorbar(
                size,
                median,
                (median - least, most - median),
                color=colors[name],
                lw=1.3,
                marker="o",
                ms=3.2,
                capsize=2,
                elinewidth=0.7,
                label=name,
            )
        axes.set(xscale="log", yscale="log", ylim=(low / 1.3, 1.3 * top))
        axes.yaxis.get_major_locator().set_params(subs=(1, 2, 5))
        axes.yaxis.set_minor_formatter("")
        keys = axes.get_legend_handles_labels()[0] if function == "training" else ()
        frame(axes, f"{function.capitalize()}, images/s", "batch size", keys)
        axes.set_xticks(sorted({row["batch_size"] for row in rows}), minor=False)
        axes.set_xticks([], minor=True)
    return page.figure
