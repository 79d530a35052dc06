"""Made-up data for figures, and functions that read pixels and texts of figures."""

import itertools

import matplotlib.image
import numpy as np

from experiments.plots import (
    ReconstructionColumn,
)

DIGITS = list("0123456789")
CLOTHES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]
MINUS = "\N{MINUS SIGN}"


def training(step, loss=0.5, accuracy=0.9, **more):
    return dict(
        step=step, epoch=step / 100, loss=loss, accuracy=accuracy, images_per_second=900.0, **more
    )


def validation(step, error):
    return dict(step=step, epoch=step / 100, validation_error=error, validation_loss=0.1)


def run(steps=500, every=10, evaluate=100):
    """Returns rows of a run that learns: a training row every few steps, validation each epoch."""
    noise = np.random.default_rng(0)
    rows = []
    for step in range(every, steps + 1, every):
        part = 0.5 * np.exp(-step / 150) + 0.002
        rows.append(
            training(
                step,
                loss=part + 0.02,
                accuracy=1 - noise.binomial(128, part) / 128,
                margin_loss=part,
                reconstruction_loss=0.02,
            )
        )
        if step % evaluate == 0:
            rows.append(validation(step, 60 * part))
    return rows


def columns(right, wrong, levels=None, shape=(28, 28, 1)):
    """Returns flat images in these levels of grey (0..255); wrong predictions are label + 1."""
    grey = iter(levels or itertools.repeat(128))
    made = []
    for k in range(right + wrong):
        label, prediction = k % 10, (k + (k >= right)) % 10
        for target in (label, prediction)[: 1 + (k >= right)]:
            pair = [np.full(shape, next(grey) / 255, np.float32) for _ in range(2)]
            made.append(ReconstructionColumn(*pair, label, prediction, target))
    return made


def pixels(path):
    """Returns the 8-bit RGB [H, W, 3] of a PNG."""
    return np.round(255 * matplotlib.image.imread(path)[..., :3]).astype(np.int16)


def box(image, color):
    """Returns first and last row and column of the area that has (nearly) this colour.

    Frames and separators (under 8 pixels) may cross it; letters elsewhere may have its colour.
    """
    hit = (abs(image - color) <= 1).all(axis=-1)
    sides = []
    for count in (hit.sum(axis=1), hit.sum(axis=0)):
        full = np.flatnonzero(count > count.max() / 2)
        area = max(np.split(full, np.flatnonzero(np.diff(full) > 8) + 1), key=len)
        sides += [area[0], area[-1]]
    top, bottom, left, right = sides
    area = hit[top : bottom + 1, left : right + 1]
    assert area.size > 1000 and area.mean() > 0.9, f"no area of colour {color}"
    return top, bottom, left, right


def texts(figure):
    """Returns the visible texts as (words, bounding box in pixels)."""
    figure.draw_without_rendering()
    found = [
        text
        for axes in figure.axes
        for text in axes.texts + [axes.title, axes._left_title, axes.xaxis.label]
    ]
    for axes in figure.axes:
        found += axes.get_legend().get_texts() if axes.get_legend() else []
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            slack = 1e-9 * (high - low)
            found += [
                tick.label1
                for tick in axis.get_major_ticks()
                if low - slack <= tick.get_loc() <= high + slack
            ]
    return [(text.get_text(), text.get_window_extent()) for text in found if text.get_text()]


def assert_legible(figure):
    """Asserts that every text lies on the page and touches no other."""
    found = texts(figure)
    for words, extent in found:
        assert extent.x0 >= 0 and extent.y0 >= 0, words
        assert extent.x1 <= figure.bbox.x1 and extent.y1 <= figure.bbox.y1, words
    for (one, a), (other, b) in itertools.combinations(found, 2):
        apart = a.x1 <= b.x0 or b.x1 <= a.x0 or a.y1 <= b.y0 or b.y1 <= a.y0
        assert apart, f"{one!r} touches {other!r}"


def words(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def lines(axes):
    return {line.get_label(): line.get_xydata() for line in axes.lines}


NAN, INF = float("nan"), float("inf")


def layer(passes, outputs):
    """Returns entropy, logit changes and activity; one capsule is never, one always active."""
    rng = np.random.default_rng(passes)
    activity = rng.uniform(0.01, 0.99, outputs)
    if outputs > 2:
        activity[[1, -1]] = 0, 1
    return 1 - rng.uniform(size=passes), 3.0 ** -np.arange(passes - 1), activity


def routed(epochs, passes, ratio=3.0):
    """Returns validation rows with logit changes that fall by the ratio from pass to pass."""
    falling = ratio ** -np.arange(passes - 1.0)
    return [
        validation(100 * k, 1.0) | {"logit_change": (falling / k).tolist()}
        for k in range(1, epochs + 1)
    ]
