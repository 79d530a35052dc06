"""Classified images: each next to the network's input and its reconstruction."""

from typing import NamedTuple

import numpy as np

from experiments.plots.channels import drawable
from experiments.plots.page import (
    GREY,
    INK,
    PALE,
    RED,
    blank_page,
    draw_image,
    save_figure,
    write_text,
)

TILE, COLUMNS = 0.95, 2  # inches; examples per line


class Example(NamedTuple):
    """An image, as floats in 0..1, and its prediction."""

    image: np.ndarray  # [h, w, 1, 3 or C] of any size
    seen: np.ndarray  # [H, W, C]
    reconstruction: np.ndarray | None  # [H, W, C]
    name: str
    found: str
    confident: bool


def plot_predictions(path, examples, title="") -> None:
    """Plots examples, two per line; predictions without confidence are red."""
    save_figure(_predictions_figure(examples, title), path)


def _predictions_figure(examples, title=""):
    seen = [example.seen for example in examples]
    shown = drawable(seen[0].shape[-1], lambda: np.stack(seen))
    lines = -(-len(examples) // COLUMNS)
    pitch = TILE + 0.62
    page = blank_page(7.0, 0.12 + lines * pitch, title)
    for k, example in enumerate(examples):
        left, top = 0.1 + k % COLUMNS * 3.5, 0.12 + k // COLUMNS * pitch
        style = dict(color=INK) if example.confident else dict(color=RED, weight="bold")
        write_text(page, left, top + 0.02, _cut(example.name, 46), color=GREY)
        write_text(page, left, top + 0.19, _cut(example.found, 40), **style)
        given = example.image if example.image.shape[-1] in (1, 3) else shown(example.image)
        tiles = ("input", given), ("seen", shown(example.seen))
        if example.reconstruction is not None:
            tiles += (("reconstruction", shown(example.reconstruction)),)
        for n, (name, image) in enumerate(tiles):
            x, y = left + n * (TILE + 0.1), top + 0.3
            high, wide = TILE * np.divide(image.shape[:2], max(image.shape[:2]))
            page.fill_between((x, x + TILE), y, y + TILE, facecolor="none", edgecolor=PALE, lw=0.5)
            draw_image(page, image, x + (TILE - wide) / 2, y + (TILE - high) / 2, wide, high)
            write_text(page, x + TILE / 2, y + TILE + 0.09, name, color=GREY, ha="center")
    return page.figure


def _cut(text, limit):
    return text if len(text) <= limit else f"{text[: limit // 2 - 1]}…{text[-limit // 2 :]}"
