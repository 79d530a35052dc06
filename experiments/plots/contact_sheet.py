"""A contact sheet: small images in groups, each with its reconstruction and a caption."""

from typing import NamedTuple

import numpy as np

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

TILE, COLUMNS = 0.78, 4  # inches; images per line, each with its reconstruction
PITCH = 1.72  # inches from one image to the next


class Frame(NamedTuple):
    """An image and what was said of it."""

    image: np.ndarray  # [H, W, 1 or 3], floats in 0..1
    reconstruction: np.ndarray | None  # of the same shape
    truth: str
    found: str
    correct: bool


def plot_contact_sheet(path, groups, title="") -> None:
    """Plots groups (name, frames), those without frames left out."""
    save_figure(_contact_sheet_figure(groups, title), path)


def _contact_sheet_figure(groups, title=""):
    groups = [(name, frames) for name, frames in groups if frames]
    lines = sum(-(-len(frames) // COLUMNS) for _, frames in groups)
    height = 0.1 + 0.3 * len(groups) + lines * (TILE + 0.5)
    page = blank_page(0.2 + COLUMNS * PITCH, max(height, 0.4), title)
    top = 0.1
    for name, frames in groups:
        write_text(page, 0.1, top + 0.08, name, weight="bold", color=INK)
        top += 0.3
        for k, frame in enumerate(frames):
            left, y = 0.1 + k % COLUMNS * PITCH, top + k // COLUMNS * (TILE + 0.5)
            for n, image in enumerate((frame.image, frame.reconstruction)):
                if image is not None:
                    _draw_tile(page, image, left + n * (TILE + 0.04), y)
            write_text(page, left, y + TILE + 0.1, cut(f"is {frame.truth}"), color=GREY)
            color = INK if frame.correct else RED
            write_text(page, left, y + TILE + 0.25, cut(frame.found), color=color)
        top += -(-len(frames) // COLUMNS) * (TILE + 0.5)
    return page.figure


def _draw_tile(page, image, x, y):
    high, wide = TILE * np.divide(image.shape[:2], max(image.shape[:2]))
    page.fill_between((x, x + TILE), y, y + TILE, facecolor="none", edgecolor=PALE, lw=0.5)
    draw_image(page, image, x + (TILE - wide) / 2, y + (TILE - high) / 2, wide, high)


def cut(text: str, limit: int = 25) -> str:
    """Shortens a text to a number of characters."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
