"""Figures of reconstructions and of perturbed capsules."""

import os

import numpy as np
import pytest
from figure_helpers import (
    CLOTHES,
    DIGITS,
    MINUS,
    NAN,
    assert_legible,
    box,
    columns,
    pixels,
    texts,
    words,
)
from matplotlib.colors import to_hex

from experiments import plots
from experiments.plots import (
    ReconstructionColumn,
    page,
    reconstructions,
)


@pytest.mark.parametrize(
    "right, wrong, names",
    [
        (1, 0, DIGITS),
        (0, 1, DIGITS),
        (3, 2, DIGITS),
        (10, 5, DIGITS),
        (12, 0, DIGITS),
        (1, 0, CLOTHES),
        (4, 1, CLOTHES),
        (10, 5, CLOTHES),
        (0, 9, CLOTHES),
        (0, 5, ["smallNORB car"] * 10),
        (6, 2, [str(k) for k in range(90, 100)]),
        (2, 1, ["$x^2$"] * 10),
        (3, 2, ["a class with a name of some length"] * 10),
    ],
)
def test_reconstructions_are_legible(right, wrong, names):
    figure = reconstructions._reconstructions_figure(
        columns(right, wrong), names, "Reconstructions"
    )
    assert_legible(figure)
    assert len(figure.axes[0].images) == 2 * (right + 2 * wrong)
    written = [extent for _, extent in texts(figure)]
    for image in figure.axes[0].images:
        extent = image.get_window_extent()
        assert 0 <= extent.x0 < extent.x1 <= figure.bbox.x1
        assert not any(extent.overlaps(other) for other in written)


def test_headings_are_label_prediction_target():
    triples = [
        text
        for text in words(reconstructions._reconstructions_figure(columns(3, 2), DIGITS))
        if text[:1].isdigit()
    ]
    assert triples == ["0 0 0", "1 1 1", "2 2 2", "3 4 3", "3 4 4", "4 5 4", "4 5 5"]


def test_long_names_are_stacked():
    found = words(reconstructions._reconstructions_figure(columns(0, 1), CLOTHES))
    assert "T-shirt/top\nTrouser\nT-shirt/top" in found
    assert "T-shirt/top\nTrouser\nTrouser" in found
    assert "label l\nprediction p\ntarget r" in found


@pytest.mark.parametrize("names", [DIGITS, CLOTHES])
def test_rows_letters_and_groups_are_explained(names):
    found = words(reconstructions._reconstructions_figure(columns(2, 1), names))
    assert {"input", "reconstruction", "correct", "wrong"} <= set(found)
    (key,) = [text for text in found if text.startswith("l: label")]
    assert "p: prediction" in key and "r: target" in key


def test_wrong_columns_come_last_separated_red_and_bold():
    shuffled = columns(2, 2)[::-1]
    figure = reconstructions._reconstructions_figure(shuffled, DIGITS)
    headings = [text for text in figure.axes[0].texts if text.get_text()[:1].isdigit()]
    wrong = [text.get_text()[0] != text.get_text()[2] for text in headings]
    assert wrong == [False] * 2 + [True] * 4
    assert {text.get_weight() for text in headings[2:]} == {"bold"}
    assert {text.get_weight() for text in headings[:2]} == {"normal"}
    assert {text.get_color() for text in headings[2:]} == {page.RED}
    places = [text.get_position()[0] for text in headings]
    steps = np.diff(places)
    assert steps[1] > 1.2 * steps[0] and np.allclose(np.delete(steps, 1), steps[0])


@pytest.mark.parametrize("names", [DIGITS, CLOTHES])
@pytest.mark.parametrize("wrong", [4, 7, 10])
def test_line_breaks_neither_separate_pairs_nor_lose_the_order(wrong, names):
    figure = reconstructions._reconstructions_figure(columns(7, wrong), names)
    images = [image.get_extent() for image in figure.axes[0].images]
    tops = [extent[3] for extent in images[::2]]
    assert len(set(tops)) > 1
    assert tops == sorted(tops)
    assert all(tops[7 + 2 * k] == tops[8 + 2 * k] for k in range(wrong))
    assert set(tops[:7]).isdisjoint(tops[7:])


def test_every_image_is_in_the_figure_input_above_reconstruction(tmp_path):
    path = tmp_path / "r.png"
    red = np.float32([1, 0, 0])  # no letter or frame mixes with an image to pure red
    given = [
        column._replace(image=column.image * red, reconstruction=column.reconstruction * red)
        for column in columns(3, 3, range(15, 250, 13), shape=(28, 28, 3))
    ]
    plots.plot_reconstructions(path, given, DIGITS)
    image, before = pixels(path), -1
    for column in given:
        above, below = (
            box(image, np.round(255 * part[0, 0])) for part in (column.image, column.reconstruction)
        )
        assert above[1] < below[0] and above[2:] == below[2:]
        assert above[2] > before
        before = above[3]


def test_black_and_white_are_fixed_and_white_has_an_edge(tmp_path):
    path = tmp_path / "r.png"
    plots.plot_reconstructions(path, columns(2, 0, [0, 255, 128, 128]), DIGITS)
    image, figure = pixels(path), reconstructions._reconstructions_figure(columns(2, 0), DIGITS)
    black, white = [figure.axes[0].images[k].get_window_extent() for k in (0, 1)]
    means = []
    for extent in (black, white):
        top, bottom = (round(figure.bbox.y1 - y) for y in (extent.y1, extent.y0))
        area = image[top:bottom, round(extent.x0) : round(extent.x1)]
        means.append(area[3:-3, 3:-3].mean())
        assert area.min() < 230
    assert means == [0.0, 255.0]


def test_colours_are_kept(tmp_path):
    red, blue = np.zeros((2, 32, 32, 3))
    red[..., 0], blue[..., 2] = 1.0, 1.0
    path = tmp_path / "rgb.png"
    plots.plot_reconstructions(path, [ReconstructionColumn(red, blue, 0, 0, 0)], DIGITS)
    assert box(pixels(path), (255, 0, 0))[1] < box(pixels(path), (0, 0, 255))[0]


def test_images_may_be_tall_or_hold_nan(tmp_path):
    tall = np.full((40, 20, 1), NAN, np.float32)
    path = tmp_path / "tall.png"
    plots.plot_reconstructions(path, [ReconstructionColumn(tall, tall + 1, 0, 1, 0)], DIGITS)
    figure = reconstructions._reconstructions_figure(
        [ReconstructionColumn(tall, tall, 0, 1, 0)], DIGITS
    )
    extent = figure.axes[0].images[0].get_window_extent()
    assert extent.height == pytest.approx(2 * extent.width)
    assert (pixels(path) == 0).all(axis=-1).sum() > 1.9 * extent.width * extent.height


def test_a_name_too_long_for_a_column_is_cut():
    found = words(reconstructions._reconstructions_figure(columns(1, 0), ["x" * 40]))
    assert "\n".join(["x" * 15 + "…"] * 3) in found


def tiles(levels, channels=()):
    """Flat images [D, V, 12, 12, ...] in levels of grey [D, V] (0..255)."""
    levels = (levels / 255).reshape(*levels.shape, *[1] * (2 + len(channels)))
    return np.broadcast_to(levels, (*levels.shape[:2], 12, 12, *channels)).astype(np.float32)


@pytest.mark.parametrize(
    "dims, values, channels", [(16, 11, ()), (8, 3, (1,)), (4, 11, (3,)), (1, 1, ()), (3, 21, ())]
)
def test_perturbations_are_a_grid_of_dimensions_and_values(dims, values, channels, tmp_path):
    path = tmp_path / "new" / "p.png"
    changes = np.linspace(-0.25, 0.25, values) if values > 1 else [0.1]
    grid = np.empty((dims, values, 4), int)
    for part, levels in ((slice(0, 2), np.arange(dims)[:, None]), (slice(2, 4), np.arange(values))):
        levels = np.broadcast_to(10 + levels * 11, (dims, values))
        plots.plot_perturbations(path, tiles(levels, channels), changes, title="Digit 5")
        image = pixels(path)
        places = {level: box(image, level)[part] for level in set(levels.flat)}
        grid[..., part] = [[places[level] for level in row] for row in levels]
    assert os.listdir(path.parent) == ["p.png"]
    top, bottom, left, right = np.moveaxis(grid, -1, 0)
    side = bottom[0, 0] - top[0, 0]
    for size in (bottom - top, right - left):
        assert side > 65 and (abs(size - side) <= 2).all(), "tiles are square"
    for gap in (top[1:] - bottom[:-1], left[:, 1:] - right[:, :-1]):
        assert ((gap > 1) & (gap < 8)).all(), "separators are thin"


@pytest.mark.parametrize("dims, values", [(16, 11), (8, 3), (1, 1), (3, 21)])
def test_perturbations_are_legible(dims, values):
    changes = np.linspace(-0.25, 0.25, values)
    figure = reconstructions._perturbations_figure(
        np.ones((dims, values, 8, 8)), changes, title="Digit 5"
    )
    assert_legible(figure)
    assert [text for text in words(figure) if text.startswith("dim")] == [
        f"dim {k}" for k in range(dims)
    ]


def test_values_head_the_columns_and_zero_is_marked():
    images = np.ones((2, 11, 8, 8))
    figure = reconstructions._perturbations_figure(
        images, np.arange(-0.25, 0.26, 0.05), dims=[3, 14]
    )
    axes = figure.axes[0]
    heads = [text for text in axes.texts if text.get_text()[:1] in tuple("+0" + MINUS)]
    assert [text.get_text() for text in heads] == [
        *[f"{MINUS}0.{k}" for k in ("25", "20", "15", "10", "05")],
        "0",
        *[f"+0.{k}" for k in ("05", "10", "15", "20", "25")],
    ]
    assert [text.get_text() for text in axes.texts][-2:] == ["dim 3", "dim 14"]
    assert [text.get_weight() == "bold" for text in heads] == [k == 5 for k in range(11)]
    (frame,) = axes.lines
    middle = frame.get_xdata()
    assert (middle.min() + middle.max()) / 2 == pytest.approx(heads[5].get_position()[0])
    assert np.ptp(middle) == pytest.approx(np.diff([h.get_position()[0] for h in heads])[0])
    assert to_hex(frame.get_color()) == heads[5].get_color().lower()


def test_without_a_zero_nothing_is_marked():
    figure = reconstructions._perturbations_figure(np.ones((2, 2, 8, 8)), [0.125, 0.25])
    assert not figure.axes[0].lines
    assert {"+0.125", "+0.250"} <= set(words(figure))


@pytest.mark.parametrize(
    "arguments", [([0.0, 0.1], None), ([-0.1, 0.0, 0.1], [1]), ([-0.1, 0.0, 0.1], [1, 2, 3])]
)
def test_lengths_must_agree(arguments, tmp_path):
    with pytest.raises(ValueError):
        plots.plot_perturbations(tmp_path / "p.png", np.ones((2, 3, 8, 8)), *arguments)
    assert not os.listdir(tmp_path)


def test_integer_images_are_refused(tmp_path):
    images = np.zeros((2, 3, 8, 8), np.uint8)
    with pytest.raises(ValueError, match=r"floats in 0\.\.1, not uint8"):
        plots.plot_perturbations(tmp_path / "p.png", images, [-0.1, 0.0, 0.1])
    with pytest.raises(ValueError, match="uint8"):
        one = ReconstructionColumn(images[0, 0, ..., None], images[0, 0, ..., None], 0, 0, 0)
        plots.plot_reconstructions(tmp_path / "r.png", [one], DIGITS)
    assert not os.listdir(tmp_path)


def test_effects_stand_below_their_dimensions():
    figure = reconstructions._perturbations_figure(
        np.ones((2, 3, 8, 8)), [-0.1, 0.0, 0.1], [7, 2], "", [0.02, 0.001]
    )
    assert_legible(figure)
    places = {text.get_text(): text.get_position()[1] for text in figure.axes[0].texts}
    assert places["dim 7"] < places["2.0e-02"] < places["dim 2"] < places["1.0e-03"]


# Bug: the dimensions of images that are wide and low were written over each other.
def test_low_images_are_legible():
    images = np.zeros((16, 11, 8, 128, 3))
    values = np.round(np.arange(-0.25, 0.26, 0.05), 2)
    figure = reconstructions._perturbations_figure(images, values, effects=[1e-5] * 16)
    assert_legible(figure)
    assert_legible(reconstructions._perturbations_figure(images, values))
    (image,) = figure.axes[0].images
    black = (image.get_array() == 0).all(axis=(1, 2)).sum()
    assert black == 16 * 8 and image.get_array().max() == 1
    made = columns(3, 2, shape=(4, 128, 1))
    assert_legible(reconstructions._reconstructions_figure(made, DIGITS))
