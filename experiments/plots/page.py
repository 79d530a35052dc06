"""The page in inches that all figures are drawn on, its colours and axes, and saving."""

import textwrap
from pathlib import Path

import numpy as np

from experiments.files import fresh

INK, GREY, PALE, BLUE, RED = "#222222", "#6B6B6B", "#B9C4CC", "#0072B2", "#C44000"
LEGEND = dict(
    fontsize=8, frameon=False, labelcolor=GREY, columnspacing=1.2, borderpad=0, borderaxespad=0
)
LITERAL = {"parse_math": False}  # of names from users, in which $ is no formula


def blank_page(width, height, title):
    """Returns the axes of a new figure, in inches to the right and down from below the title."""
    from matplotlib.figure import Figure

    lines = textwrap.wrap(title, int(width / 0.09))
    top = 0.15 + 0.2 * len(lines)
    axes = Figure((width, top + height), dpi=150, facecolor="white").add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, -top), frame_on=False, xticks=[], yticks=[])
    write_text(axes, 0.1, 0.08 - top, "\n".join(lines), va="top", fontsize=10)
    return axes


def add_axes(page, x, y, width, height):
    """Adds axes to a page at a position in inches."""
    right, (bottom, top) = page.get_xlim()[1], page.get_ylim()
    tall = bottom - top
    return page.figure.add_axes(
        (x / right, (bottom - y - height) / tall, width / right, height / tall), facecolor="none"
    )


def style_axes(axes, name, xlabel, keys=()):
    """Sets title, label, ticks and grid of axes, and a legend of the given lines."""
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title(name, loc="left", fontsize=9, color=INK, pad=20 if keys else 6)
    axes.set_xlabel(xlabel, fontsize=8, color=GREY)
    axes.tick_params(labelsize=8, labelcolor=GREY, color=PALE, length=3)
    axes.grid(axis="y", color="#E9ECEE", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[:].set_color(PALE)
    axes.spines[["top", "right"]].set_visible(False)
    if keys:
        axes.legend(handles=keys, loc="lower left", bbox_to_anchor=(0, 1.04), ncols=11, **LEGEND)


def set_log_or_linear_scale(axes, values, smallest, decade=False):
    """Makes the y axis logarithmic, or linear if all values lie within a factor of 4.

    A logarithmic axis is linear down to zero below smallest * maximum. With ``decade`` the axis is
    always logarithmic, over at least a decade.
    """
    low, high = values.min(initial=np.inf), values.max(initial=0.0)
    low = min(low, high / 10) if decade and high else low
    floor = 10 ** np.floor(np.log10(smallest * high or 1.0))
    if low <= high / 4:
        axes.set_yscale("symlog", linthresh=floor, linscale=0.4)
        subs = (1, 2, 5) if high < 300 * max(low, floor) else (1,)
        axes.yaxis.get_major_locator().set_params(subs=subs, numticks=8)
    axes.set_ylim(low / 1.15 if floor <= low <= high / 4 else 0, 1.15 * high or 1)


def color_map(*colors):
    """Returns a colour map that interpolates these colours; NaN is pale."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("", colors).with_extremes(bad=PALE)


def fit_labels(names, count, pitch):
    """Returns the (index, name, style) of names that fit at a pitch in inches, and their height."""
    names = [name if len(name) <= 24 else name[:23] + "…" for name in map(str, names)]
    longest = 0.072 * max(map(len, names)) + 0.05
    rotated = longest > max(pitch, 0.3)
    step = int(np.ceil((0.13 if rotated else longest) / pitch))
    style = dict(ha="center", rotation=90 if rotated else 0)
    labels = [(k, name, style) for k, name in zip(range(count), names, strict=True)]
    return labels[::step], longest if rotated else 0.15


def nonfinite_to_nan(values):
    """Replaces values that are not finite by NaN, which is not drawn."""
    values = np.array(values, float)
    return np.where(np.isfinite(values), values, np.nan)


def write_text(axes, x, y, text, **style):
    """Writes text verbatim, including dollar signs, at a position in inches of the page."""
    axes.text(x, y, text, **dict(color=INK, fontsize=8, va="center", parse_math=False) | style)


def draw_image(axes, image, x, y, width, height):
    """Draws an image [H, W] or [H, W, 1 or 3], floats in 0..1, black to white."""
    if not np.issubdtype(image.dtype, np.floating):
        raise ValueError(f"images must be floats in 0..1, not {image.dtype}")
    style = dict(cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    draw_values(axes, np.nan_to_num(image).clip(0, 1), x, y, width, height, **style)


def draw_values(axes, image, x, y, width, height, **style):
    """Draws values [H, W] in the colours of the style, with a frame."""
    axes.imshow(image, aspect="auto", extent=(x, x + width, y + height, y), **style)
    axes.fill_between((x, x + width), y, y + height, facecolor="none", edgecolor=PALE, lw=0.5)


def save_figure(figure, path):
    """Writes a PNG or a PDF by the suffix of the path, replacing an old file in one move."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with fresh(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], facecolor="white")
