"""Pictures are read back as pixels; what they say is read from the Figures before saving."""

import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from experiments import plots
from experiments.plots import (
    ReconstructionColumn,
    page,
    predictions,
    reconstructions,
    routing,
    training_curves,
)

DIGITS = list("0123456789")
CLOTHES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker",
           "Bag", "Ankle boot"]
MINUS = "\N{MINUS SIGN}"


def training(step, loss=0.5, accuracy=0.9, **more):
    return dict(step=step, epoch=step / 100, loss=loss, accuracy=accuracy,
                images_per_second=900.0, **more)


def validation(step, error):
    return dict(step=step, epoch=step / 100, validation_error=error, validation_loss=0.1)


def run(steps=500, every=10, evaluate=100):
    """Rows of a run that learns: a training row every few steps, validation each epoch."""
    noise = np.random.default_rng(0)
    rows = []
    for step in range(every, steps + 1, every):
        part = 0.5 * np.exp(-step / 150) + 0.002
        rows.append(training(step, loss=part + 0.02, accuracy=1 - noise.binomial(128, part) / 128,
                             margin_loss=part, reconstruction_loss=0.02))
        if step % evaluate == 0:
            rows.append(validation(step, 60 * part))
    return rows


def columns(right, wrong, levels=None, shape=(28, 28, 1)):
    """Flat images in these levels of grey (0..255); labels count up, wrong predictions are +1."""
    grey = iter(levels or itertools.repeat(128))
    made = []
    for k in range(right + wrong):
        label, prediction = k % 10, (k + (k >= right)) % 10
        for target in (label, prediction)[:1 + (k >= right)]:
            pair = [np.full(shape, next(grey) / 255, np.float32) for _ in range(2)]
            made.append(ReconstructionColumn(*pair, label, prediction, target))
    return made


def pixels(path):
    """8-bit RGB [H, W, 3] of a PNG."""
    return np.round(255 * matplotlib.image.imread(path)[..., :3]).astype(np.int16)


def box(image, color):
    """First and last row, first and last column of the area that has (nearly) this colour.

    Frames and separators (under 8 pixels) may cross it; letters elsewhere may have its colour.
    """
    hit = (abs(image - color) <= 1).all(axis=-1)
    sides = []
    for count in (hit.sum(axis=1), hit.sum(axis=0)):
        full = np.flatnonzero(count > count.max() / 2)
        area = max(np.split(full, np.flatnonzero(np.diff(full) > 8) + 1), key=len)
        sides += [area[0], area[-1]]
    top, bottom, left, right = sides
    area = hit[top:bottom + 1, left:right + 1]
    assert area.size > 1000 and area.mean() > 0.9, f"no area of colour {color}"
    return top, bottom, left, right


def texts(figure):
    """Visible texts, drawn, as (words, bounding box in pixels)."""
    figure.draw_without_rendering()
    found = [text for axes in figure.axes for text in axes.texts + [
        axes.title, axes._left_title, axes.xaxis.label]]
    for axes in figure.axes:
        found += axes.get_legend().get_texts() if axes.get_legend() else []
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            slack = 1e-9 * (high - low)
            found += [tick.label1 for tick in axis.get_major_ticks()
                      if low - slack <= tick.get_loc() <= high + slack]
    return [(text.get_text(), text.get_window_extent()) for text in found if text.get_text()]


def assert_legible(figure):
    """Every text lies on the page and touches no other."""
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
HISTORIES = {
    "run": run(),
    "long": run(steps=40_000, evaluate=200),
    "one row": [training(1)],
    "one validation": [validation(100, 3.0)],
    "step 0": [training(0), validation(0, 90.0)],
    "no validation": [row for row in run() if "loss" in row],
    "no training": [row for row in run() if "loss" not in row],
    "nothing": [],
    "zeros": [training(1, 0.1, 0.9), training(2, 0.0, 1.0), validation(2, 0.0)],
    "all zero": [training(1, 0.0, 1.0), validation(1, 0.0)],
    "flat": [training(k, 2.3, 0.1) for k in range(9)] + [validation(9, 100.0)],
    "nan": [*run(), training(600, NAN, NAN), validation(600, NAN), training(700, INF, None)],
    "only nan": [training(1, NAN, NAN, margin_loss=None), validation(1, NAN)],
    "no epoch": [{**training(1), "epoch": None}, {**validation(2, 1.0), "epoch": NAN}],
    "no accuracy": [dict(step=1, epoch=0.1, loss=1.0)],
    "wide": [training(k, 10.0 ** -k, 1 - 10.0 ** -k) for k in range(12)],
}


@pytest.mark.parametrize("name", HISTORIES)
def test_training_curves_of_any_run(name, tmp_path):
    path = tmp_path / "new" / "folder" / "curves.png"
    assert plots.plot_training_curves(path, HISTORIES[name]) is None
    picture = pixels(path)
    assert picture.shape[1] == 1050 and 400 < picture.shape[0] < 500
    assert (picture < 200).any(axis=-1).sum() > 1000
    assert os.listdir(path.parent) == ["curves.png"]


@pytest.mark.parametrize("name", ["run", "one row", "all zero", "flat", "wide"])
def test_training_curves_are_legible(name):
    assert_legible(training_curves._training_curves_figure(HISTORIES[name], "A title: " + name))


@pytest.mark.parametrize("low, high", [
    (1e-3, 3.9e-3), (0.21, 0.9), (0.011, 0.099), (3.0, 900.0), (1e-4, 2.0), (1e-9, 1.0),
    (0.0, 0.7), (0.0, 0.11), (2.29, 2.31), (1e-7, 1e7)])
def test_any_range_of_losses_has_a_legible_scale(low, high):
    figure = training_curves._training_curves_figure([training(1, high), training(100, low)])
    assert_legible(figure)
    axes = figure.axes[1]
    bottom, top = axes.get_ylim()
    assert bottom <= low and high <= top
    assert 2 <= sum(bottom <= tick <= top for tick in axes.get_yticks()) <= 9


def test_training_curves_draw_the_rows():
    left, right = training_curves._training_curves_figure(run()).axes[1:]
    rows = run()
    assert list(lines(left)) == ["total", "margin", "reconstruction"]
    for label, key in (("total", "loss"), ("margin", "margin_loss"),
                       ("reconstruction", "reconstruction_loss")):
        expected = [(row["epoch"], row[key]) for row in rows if "loss" in row]
        np.testing.assert_allclose(lines(left)[label], expected)
    measured = [(row["epoch"], row["validation_error"]) for row in rows if "loss" not in row]
    np.testing.assert_allclose(lines(right)["validation"], measured)
    failed = [100 * (1 - row["accuracy"]) for row in rows if "loss" in row]
    assert len(lines(right)["training"]) == 25
    np.testing.assert_allclose(lines(right)["training"][:, 1].mean(), np.mean(failed))
    assert [text.get_text() for text in right.texts] == [f"{measured[-1][1]:.2f}%"]
    assert left.get_xlim() == right.get_xlim() == (0, 5.0)


def test_a_model_without_parts_has_one_loss():
    figure = training_curves._training_curves_figure([training(1), training(2)])
    assert list(lines(figure.axes[1])) == ["total"]


def test_losses_are_on_a_log_scale_and_zeros_are_shown():
    def heights(losses):
        axes = training_curves._training_curves_figure(
            [training(k, loss) for k, loss in enumerate(losses, 1)]).axes[1]
        return axes.transAxes.inverted().transform(
            axes.transData.transform([(0.01, loss) for loss in losses]))[:, 1]

    a, b, c = heights([1.0, 0.1, 0.01])
    assert a - b == pytest.approx(b - c, rel=0.01)
    top, middle, bottom = heights([1.0, 0.1, 0.0])
    assert bottom == pytest.approx(0.0) and middle > 0.5 and top < 1


def test_validation_points_are_marked_and_the_last_finite_one_is_written():
    rows = [validation(100, 4.0), validation(200, 1.25), validation(300, NAN)]
    right = training_curves._training_curves_figure(rows).axes[2]
    (line,) = right.lines
    assert line.get_marker() == "o" and line.get_markevery() == 1
    (text,) = right.texts
    assert text.get_text() == "1.25%" and tuple(text.xy) == (2.0, 1.25)


def test_values_that_are_not_finite_are_left_out():
    rows = [training(1, 1.0), training(2, NAN), training(3, INF), training(4, None),
            training(5, 3.0)]
    left = training_curves._training_curves_figure(rows).axes[1]
    np.testing.assert_allclose(lines(left)["total"], [(0.01, 1.0), (0.05, 3.0)])


def test_the_last_row_of_a_step_counts():
    rows = [training(1, 1.0), training(2, 2.0), training(3, 3.0), training(2, 20.0)]
    left = training_curves._training_curves_figure(rows).axes[1]
    assert lines(left)["total"][:, 1].tolist() == [1.0, 20.0, 3.0]


def test_thousands_of_rows_are_averaged_but_validation_is_not():
    rows = run(steps=40_000, evaluate=200)
    left, right = training_curves._training_curves_figure(rows).axes[1:]
    losses = [row["loss"] for row in rows if "loss" in row]
    drawn = lines(left)["total"][:, 1]
    assert len(losses) == 4000 and len(drawn) == 150
    assert drawn.mean() == pytest.approx(np.mean(losses), rel=0.01)
    assert len(lines(right)["validation"]) == 200


@pytest.mark.parametrize("right, wrong, names", [
    (1, 0, DIGITS), (0, 1, DIGITS), (3, 2, DIGITS), (10, 5, DIGITS), (12, 0, DIGITS),
    (1, 0, CLOTHES), (4, 1, CLOTHES), (10, 5, CLOTHES), (0, 9, CLOTHES),
    (0, 5, ["smallNORB car"] * 10), (6, 2, [str(k) for k in range(90, 100)]),
    (2, 1, ["$x^2$"] * 10), (3, 2, ["a class with a name of some length"] * 10)])
def test_reconstructions_are_legible(right, wrong, names):
    figure = reconstructions._reconstructions_figure(columns(right, wrong), names, "Reconstructions")
    assert_legible(figure)
    assert len(figure.axes[0].images) == 2 * (right + 2 * wrong)
    written = [extent for _, extent in texts(figure)]
    for image in figure.axes[0].images:
        extent = image.get_window_extent()
        assert 0 <= extent.x0 < extent.x1 <= figure.bbox.x1
        assert not any(extent.overlaps(other) for other in written)


def test_headings_are_label_prediction_target():
    triples = [text for text in words(reconstructions._reconstructions_figure(columns(3, 2), DIGITS))
               if text[:1].isdigit()]
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


def test_wrong_columns_come_last_apart_red_and_bold():
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
def test_wrapping_parts_neither_a_pair_nor_loses_order(wrong, names):
    figure = reconstructions._reconstructions_figure(columns(7, wrong), names)
    images = [image.get_extent() for image in figure.axes[0].images]
    tops = [extent[3] for extent in images[::2]]
    assert len(set(tops)) > 1
    assert tops == sorted(tops)
    assert all(tops[7 + 2 * k] == tops[8 + 2 * k] for k in range(wrong))
    assert set(tops[:7]).isdisjoint(tops[7:])


def test_every_image_is_in_the_picture_input_above_reconstruction(tmp_path):
    path = tmp_path / "r.png"
    red = np.float32([1, 0, 0])  # no letter or frame mixes with an image to pure red
    given = [column._replace(image=column.image * red, reconstruction=column.reconstruction * red)
             for column in columns(3, 3, range(15, 250, 13), shape=(28, 28, 3))]
    plots.plot_reconstructions(path, given, DIGITS)
    picture, before = pixels(path), -1
    for column in given:
        above, below = (box(picture, np.round(255 * part[0, 0]))
                        for part in (column.image, column.reconstruction))
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
        area = image[top:bottom, round(extent.x0):round(extent.x1)]
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
    figure = reconstructions._reconstructions_figure([ReconstructionColumn(tall, tall, 0, 1, 0)], DIGITS)
    extent = figure.axes[0].images[0].get_window_extent()
    assert extent.height == pytest.approx(2 * extent.width)
    assert (pixels(path) == 0).all(axis=-1).sum() > 1.9 * extent.width * extent.height


def test_a_name_too_long_for_a_column_is_cut():
    found = words(reconstructions._reconstructions_figure(columns(1, 0), ["x" * 40]))
    assert "\n".join(["x" * 17 + "…"] * 3) in found


def tiles(levels, channels=()):
    """Flat images [D, V, 12, 12, ...] in levels of grey [D, V] (0..255)."""
    levels = (levels / 255).reshape(*levels.shape, *[1] * (2 + len(channels)))
    return np.broadcast_to(levels, (*levels.shape[:2], 12, 12, *channels)).astype(np.float32)


@pytest.mark.parametrize("dims, values, channels", [
    (16, 11, ()), (8, 3, (1,)), (4, 11, (3,)), (1, 1, ()), (3, 21, ())])
def test_perturbations_are_a_grid_of_dimensions_and_values(dims, values, channels, tmp_path):
    path = tmp_path / "new" / "p.png"
    changes = np.linspace(-0.25, 0.25, values) if values > 1 else [0.1]
    grid = np.empty((dims, values, 4), int)
    for part, levels in ((slice(0, 2), np.arange(dims)[:, None]), (slice(2, 4), np.arange(values))):
        levels = np.broadcast_to(10 + levels * 11, (dims, values))
        plots.plot_perturbations(path, tiles(levels, channels), changes, title="Digit 5")
        picture = pixels(path)
        places = {level: box(picture, level)[part] for level in set(levels.flat)}
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
    figure = reconstructions._perturbations_figure(np.ones((dims, values, 8, 8)), changes, title="Digit 5")
    assert_legible(figure)
    assert [text for text in words(figure) if text.startswith("dim")] == [
        f"dim {k}" for k in range(dims)]


def test_values_head_the_columns_and_zero_is_marked():
    images = np.ones((2, 11, 8, 8))
    figure = reconstructions._perturbations_figure(images, np.arange(-0.25, 0.26, 0.05), dims=[3, 14])
    axes = figure.axes[0]
    heads = [text for text in axes.texts if text.get_text()[:1] in tuple("+0" + MINUS)]
    assert [text.get_text() for text in heads] == [
        *[f"{MINUS}0.{k}" for k in ("25", "20", "15", "10", "05")], "0",
        *[f"+0.{k}" for k in ("05", "10", "15", "20", "25")]]
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


@pytest.mark.parametrize("arguments", [
    ([0.0, 0.1], None), ([-0.1, 0.0, 0.1], [1]), ([-0.1, 0.0, 0.1], [1, 2, 3])])
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


SIGNS = [f"Speed limit ({k}0km/h)" if k % 3 else "Road narrows on the right" for k in range(43)]
LAYERS = [(1, 2, ["no", "yes"]), (3, 10, DIGITS), (7, 10, CLOTHES), (3, 43, SIGNS), (2, 1, ["one"]),
          (7, 100, range(100)), (12, 25, ["$x^2$"] * 25), (3, 100, SIGNS + SIGNS + SIGNS[:14])]


def layer(passes, parents):
    """Entropy, changes of logits and activity, of which one is never and one always active."""
    rng = np.random.default_rng(passes)
    activity = rng.uniform(0.01, 0.99, parents)
    if parents > 2:
        activity[[1, -1]] = 0, 1
    return 1 - rng.uniform(size=passes), 3.0 ** -np.arange(passes - 1), activity


@pytest.mark.parametrize("passes, parents, names", LAYERS)
def test_routing_diagnostics_are_legible(passes, parents, names):
    figure = routing._routing_diagnostics_figure(*layer(passes, parents), names, "A title")
    assert_legible(figure)
    for axes in figure.axes[1:]:
        assert axes.get_window_extent().x1 <= figure.bbox.x1


@pytest.mark.parametrize("passes, parents", [(1, 2), (2, 1), (7, 10)])
def test_routing_diagnostics_draw_the_numbers(passes, parents):
    entropy, change, activity = layer(passes, parents)
    figure = routing._routing_diagnostics_figure(entropy, change, activity, range(parents))
    page, left, right, bars = figure.axes
    np.testing.assert_array_equal(left.lines[0].get_xydata(),
                                  np.stack([np.arange(passes) + 1, entropy], 1))
    np.testing.assert_array_equal(right.lines[0].get_xydata(),
                                  np.stack([np.arange(passes - 1) + 2, change], 1))
    assert left.get_xlim() == right.get_xlim() and left.get_ylim() == (0, 1.05)
    heights = [bar.get_height() for bar in bars.patches]
    np.testing.assert_array_equal(heights, activity)
    assert ("a single pass: no change" in words(figure)) == (passes == 1)
    middles = [bars.transData.transform((bar.get_x() + bar.get_width() / 2, 0))[0]
               for bar in bars.patches]
    below = [text.get_window_extent() for text in page.texts if text.get_text().isdigit()]
    np.testing.assert_allclose([(b.x0 + b.x1) / 2 for b in below], middles, atol=2)


def test_parents_never_and_always_active_are_marked_and_counted():
    activity = np.array([0.0, 0.5, 1.0, 0.0, 0.9999, 1e-4, np.float32(1)])
    bars = routing._routing_diagnostics_figure([1.0], [], activity, "abcdefg").axes[3]
    assert [text.get_text() for text in bars.get_legend().get_texts()] == ["2 never", "2 always"]
    crosses, squares = bars.lines
    assert crosses.get_xdata().tolist() == [0, 3] and to_hex(crosses.get_color()) == "#c44000"
    colors = [to_hex(bar.get_facecolor()) for bar in bars.patches]
    assert [k for k, color in enumerate(colors) if color == to_hex(squares.get_color())] == [2, 6]
    assert len(set(colors)) == 2


def test_changes_of_logits_are_on_a_log_scale():
    right = routing._routing_diagnostics_figure([1.0] * 4, [1.0, 0.1, 0.01], [0.5], "a").axes[2]
    a, b, c = right.transData.transform([(2, 1.0), (2, 0.1), (2, 0.01)])[:, 1]
    assert a - b == pytest.approx(b - c, rel=0.01)


def test_long_names_of_parents_are_cut():
    for figure in (routing._routing_diagnostics_figure([1.0], [], np.ones(2), ["x" * 40, "y"]),
                   routing._coupling_matrix_figure(np.ones((3, 2)), ["x" * 40, "y"])):
        assert {"x" * 23 + "…", "y"} < set(words(figure)) and figure.get_figheight() < 7


@pytest.mark.parametrize("passes", [1, 3])
def test_numbers_that_are_not_finite_do_not_matter(passes, tmp_path):
    for value in (NAN, INF):
        entropy, change, activity = (x + value for x in layer(passes, 4))
        arguments = entropy, change, activity, "abcd"
        plots.plot_routing_diagnostics(tmp_path / "d.png", *arguments)
        assert_legible(routing._routing_diagnostics_figure(*arguments))
        for grid in (None, (2, 2, 3)):
            coupling = np.full((12, 4), value)
            plots.plot_coupling_matrix(tmp_path / "m.png", coupling, "abcd", grid=grid)
            coupling[::2] = 0.25
            plots.plot_coupling_matrix(tmp_path / "m.png", coupling, "abcd", grid=grid)
        rows = [dict(step=k, epoch=k, logit_change=[value] * (passes - 1)) for k in range(3)]
        plots.plot_logit_changes(tmp_path / "l.png", rows)
    assert sorted(os.listdir(tmp_path)) == ["d.png", "l.png", "m.png"]


@pytest.mark.parametrize("grid", [None, (3, 2, 4)])
@pytest.mark.parametrize("parents, names", [case[1:] for case in LAYERS])
def test_coupling_matrices_are_legible(parents, names, grid):
    coupling = np.random.default_rng(0).dirichlet(np.ones(parents), 24)
    figure = routing._coupling_matrix_figure(coupling, names, "A title", grid)
    assert_legible(figure)
    written = [extent for _, extent in texts(figure)]
    images = [image.get_window_extent() for image in figure.axes[0].images]
    assert len(images) == 1 + (1 if grid is None else parents)
    for k, extent in enumerate(images):
        assert 0 <= extent.x0 and extent.x1 <= figure.bbox.x1 and 0 <= extent.y0
        assert not any(extent.overlaps(other) for other in written + images[:k])


def test_children_go_down_and_parents_across(tmp_path):
    path, coupling = tmp_path / "m.png", np.full((4, 3), 1 / 3)
    coupling[2], coupling[3] = (0, 0, 1), (1, 0, 0)
    plots.plot_coupling_matrix(path, coupling, "abc")
    figure = routing._coupling_matrix_figure(coupling, "abc")
    picture, blue = pixels(path), (0, 0x72, 0xB2)
    extent = figure.axes[0].images[0].get_window_extent()
    heads = [text.get_window_extent() for text in figure.axes[0].texts
             if text.get_text() in tuple("abc")]
    for i, row in enumerate(coupling):
        for head, value in zip(heads, row, strict=True):
            x, top = round((head.x0 + head.x1) / 2), figure.bbox.y1 - extent.y1
            for part in (0.1, 0.5, 0.9):
                color = picture[round(top + (i + part) * extent.height / 4), x]
                if value == 1:
                    assert abs(color - blue).max() <= 2
                elif value == 0:
                    assert color[0] > color[1] > color[2], "red, but pale: 0 is near 1/3"
                else:
                    assert color.min() > 250


def test_no_coupling_is_lost_among_many_children(tmp_path):
    path, coupling = tmp_path / "m.png", np.full((1152, 10), 0.1)
    for child in (5, 100, 577, 578, 1150):  # at the very edge is the frame
        coupling[:, 4] = 0.1
        coupling[child, 4] = 1.0
        plots.plot_coupling_matrix(path, coupling, DIGITS)
        picture = pixels(path)[100:]  # below the scale
        pale = picture[..., 2] - picture[..., 0]
        assert pale.max() > 45
        rows, columns = np.nonzero(pale > 45)
        assert np.ptp(rows) <= 2 and 80 < np.ptp(columns) < 95


def test_colours_are_centred_on_an_even_share():
    for parents, others in ((2, 0.0), (10, 0.099), (10, 0.09), (3, 0.3)):
        coupling = np.full((5, parents), 1 / parents)
        coupling[1, 0] = others
        figure = routing._coupling_matrix_figure(coupling, range(parents))
        for image in figure.axes[0].images:
            low, high = image.get_clim()
            assert (low + high) / 2 == pytest.approx(1 / parents)
            assert high - low == pytest.approx(2 * max(1 / parents - others, 0.1 / parents))
        assert f"1/{parents}" in words(figure)


def test_the_scale_ends_at_zero():
    coupling = np.zeros((4, 5))
    coupling[:, 0] = 1
    figure = routing._coupling_matrix_figure(coupling, range(5))
    scale = figure.axes[0].images[-1].get_array()
    assert (scale.min(), scale.max()) == (0, 1)
    assert {"0", "1/5", "1"} <= set(words(figure))
    for parents in (2, 7, 10, 100):
        assert_legible(routing._coupling_matrix_figure(np.eye(parents), range(parents)))


def test_maps_of_a_grid_are_means_over_types():
    rng, (H, W, T), J = np.random.default_rng(0), (2, 5, 3), 4
    coupling = rng.dirichlet(np.ones(J), H * W * T)
    figure = routing._coupling_matrix_figure(coupling, "abcd", grid=(H, W, T))
    *maps, _ = figure.axes[0].images
    for j, drawn in enumerate(maps):
        for h, w in np.ndindex(H, W):
            mean = sum(coupling[(h * W + w) * T + t, j] for t in range(T)) / T
            assert drawn.get_array()[h, w] == pytest.approx(mean)
        extent = drawn.get_window_extent()
        assert extent.width / extent.height == pytest.approx(W / H)
        (head,) = [text.get_window_extent() for text in figure.axes[0].texts
                   if text.get_text() == "abcd"[j]]
        assert extent.x0 < head.x0 < head.x1 < extent.x1 and 0 < head.y0 - extent.y1 < 12


@pytest.mark.parametrize("names, grid", [("abc", None), ("abcde", None), ("abc", (2, 3, 2)),
                                         ("abcd", (2, 3, 3))])
def test_names_and_grid_must_fit(names, grid, tmp_path):
    with pytest.raises(ValueError):
        plots.plot_coupling_matrix(tmp_path / "m.png", np.ones((12, 4)), names, grid=grid)
    if grid is None:
        with pytest.raises(ValueError):
            plots.plot_routing_diagnostics(tmp_path / "d.png", [1.0], [], np.ones(4), names)
    assert not os.listdir(tmp_path)


def routed(epochs, passes, ratio=3.0):
    """Rows of validation with changes of logits that fall by the ratio from pass to pass."""
    falling = ratio ** -np.arange(passes - 1.0)
    return [validation(100 * k, 1.0) | {"logit_change": (falling / k).tolist()}
            for k in range(1, epochs + 1)]


@pytest.mark.parametrize("passes", [1, 2, 3, 7, 12])
@pytest.mark.parametrize("epochs", [1, 5, 500])
def test_logit_changes_are_legible(passes, epochs):
    figure = training_curves._logit_changes_figure(run() + routed(epochs, passes), "A title")
    assert_legible(figure)
    assert len(figure.axes[1].lines) == passes - 1
    assert ("no changes recorded" in words(figure)) == (passes == 1)


def test_logit_changes_draw_each_pass_from_the_second_on():
    rows = routed(6, 4)
    axes = training_curves._logit_changes_figure(run() + rows).axes[1]
    assert list(lines(axes)) == ["pass 2", "3", "4"]
    for k, drawn in enumerate(lines(axes).values()):
        expected = [(row["epoch"], row["logit_change"][k]) for row in rows]
        np.testing.assert_allclose(drawn, expected)
    colors = [to_hex(line.get_color()) for line in axes.lines]
    assert len(set(colors)) == 3


@pytest.mark.parametrize("ratio", [1.3, 3.0])
def test_logit_changes_are_on_a_log_scale_however_near(ratio):
    axes = training_curves._logit_changes_figure(routed(2, 3, ratio)).axes[1]
    heights = axes.transData.transform([(1, ratio ** -n) for n in range(3)])[:, 1]
    a, b = -np.diff(heights)
    assert a == pytest.approx(b, rel=0.01) and a > 0


def test_logit_changes_of_odd_rows():
    rows = [*routed(3, 3), dict(epoch=4.0, logit_change=[0.5]), dict(step=500, logit_change=[1.0]),
            dict(step=600, epoch=None, logit_change=[1.0, 1.0]), validation(700, 1.0),
            dict(step=800, epoch=8.0, logit_change=None), dict(epoch=9.0, logit_change=[NAN, None])]
    axes = training_curves._logit_changes_figure(rows).axes[1]
    assert [len(drawn) for drawn in lines(axes).values()] == [4, 3]
    for empty in ([], run(), routed(5, 1), [dict(step=1, epoch=1.0, logit_change=[NAN])]):
        assert "no changes recorded" in words(training_curves._logit_changes_figure(empty))


def test_pictures_of_routing_are_saved(tmp_path):
    path = tmp_path / "new" / "d.png"
    for function, *arguments in [(plots.plot_routing_diagnostics, *layer(3, 10), DIGITS),
                                 (plots.plot_coupling_matrix, np.eye(10), DIGITS),
                                 (plots.plot_coupling_matrix, np.eye(10), DIGITS, "", (5, 1, 2)),
                                 (plots.plot_logit_changes, routed(3, 3))]:
        assert function(path, *arguments) is None
        assert os.listdir(path.parent) == ["d.png"]
        assert pixels(path).shape[1] == 1050 and (pixels(path) < 200).any(axis=-1).sum() > 1000
        path.unlink()


@pytest.mark.parametrize("names", [["r=1", "r=3"], ["x" * 200], [f"seed={k}" for k in range(9)]])
def test_losses_of_several_runs_are_legible_and_drawn(names):
    histories = {name: run(steps=100 * k) for k, name in enumerate(names, 1)}
    figure = training_curves._losses_figure(histories, "A title")
    assert_legible(figure)
    drawn = figure.axes[1].lines
    for line, rows in zip(drawn, histories.values(), strict=True):
        expected = [(row["epoch"], row["loss"]) for row in rows if "loss" in row]
        np.testing.assert_allclose(line.get_xydata(), expected)
    assert len({(line.get_color(), line.get_linestyle()) for line in drawn}) == len(names)
    last = [row["loss"] for row in histories[names[0]] if "loss" in row][-1]
    assert any(text.endswith(f": {last:.4f} at the end") for text in words(figure))


def test_losses_of_runs_without_any():
    figure = training_curves._losses_figure({"a": [], "b": [dict(step=1, loss=1.0, epoch=None)]})
    assert [text for text in words(figure) if text] == ["a: no losses", "b: no losses"]


def test_predictions_are_legible_and_show_all_three_images():
    grey, color = np.full((9, 30, 1), 0.5), np.full((40, 20, 3), 0.5)
    examples = [predictions.Example(grey, grey, grey, "a" * 90, "3 0.812, then 8 0.101", True),
                predictions.Example(color, grey, None, "b.png", "none: 3 0.2, then 8 0.1", False),
                predictions.Example(grey, color, color, "c.png", "truck 0.9, then car 0.1", True)]
    figure = predictions._predictions_figure(examples, "A title")
    assert_legible(figure)
    assert len(figure.axes[0].images) == 8
    for image in figure.axes[0].images:
        high, wide = image.get_array().shape[:2]
        extent = image.get_window_extent()
        assert extent.height / extent.width == pytest.approx(high / wide, rel=1e-3)
    (red,) = [text for text in figure.axes[0].texts if text.get_color() == page.RED]
    assert red.get_text().startswith("none")


def test_effects_stand_below_their_dimensions():
    figure = reconstructions._perturbations_figure(
        np.ones((2, 3, 8, 8)), [-0.1, 0.0, 0.1], [7, 2], "", [0.02, 0.001])
    assert_legible(figure)
    places = {text.get_text(): text.get_position()[1] for text in figure.axes[0].texts}
    assert places["dim 7"] < places["2.0e-02"] < places["dim 2"] < places["1.0e-03"]


def test_titles_are_shown_wrapped_and_plain():
    title = "Costs $5 and $6, " + "with words " * 20
    grid = np.ones((2, 3, 8, 8)), [-0.1, 0.0, 0.1]
    for figure in (training_curves._training_curves_figure(run(), title),
                   reconstructions._reconstructions_figure(columns(1, 0), DIGITS, title),
                   reconstructions._perturbations_figure(*grid, None, title),
                   training_curves._logit_changes_figure(routed(3, 3), title),
                   routing._routing_diagnostics_figure(*layer(3, 10), DIGITS, title),
                   routing._coupling_matrix_figure(np.ones((8, 2)), "ab", title),
                   routing._coupling_matrix_figure(np.ones((8, 2)), "ab", title, (2, 2, 2))):
        assert_legible(figure)
        shown = words(figure)[0]
        assert shown.split() == title.split() and shown.count("\n") >= 2


def test_a_failure_leaves_the_old_picture_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "curves.png"
    plots.plot_training_curves(path, run())
    old = path.read_bytes()

    def fail(self, name, **kwargs):
        assert Path(name).parent == tmp_path and Path(name) != path
        Path(name).write_bytes(b"half a picture")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        plots.plot_training_curves(path, [])
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["curves.png"]


def test_a_picture_is_replaced_and_paths_may_be_strings(tmp_path):
    path = tmp_path / "curves.png"
    path.write_bytes(b"old")
    with open(path, "rb") as reader:
        plots.plot_training_curves(str(path), run())
        assert reader.read() == b"old", "the old file must not change under its readers"
    assert pixels(path).shape[1] == 1050
    assert os.listdir(tmp_path) == ["curves.png"]


def test_a_pdf_is_named_as_one(tmp_path):
    for name, start in (("a.pdf", b"%PDF-"), ("a.png", b"\x89PNG")):
        plots.plot_training_curves(tmp_path / name, run())
        assert (tmp_path / name).read_bytes().startswith(start)
    with pytest.raises(ValueError, match="xyz"):
        plots.plot_training_curves(tmp_path / "a.xyz", run())
    assert sorted(os.listdir(tmp_path)) == ["a.pdf", "a.png"]


def test_threads_draw_what_one_thread_draws(tmp_path):
    jobs = [(plots.plot_training_curves, run(200)), (plots.plot_training_curves, run(400)),
            (plots.plot_reconstructions, columns(1, 0), CLOTHES),
            (plots.plot_reconstructions, columns(0, 1), CLOTHES)]

    def draw(folder, number):
        function, *arguments = jobs[number]
        function(tmp_path / folder / f"{number}.png", *arguments)
        return (tmp_path / folder / f"{number}.png").read_bytes()

    alone = [draw("alone", number) for number in range(len(jobs))]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda number: draw("together", number), range(len(jobs))))
    assert together == alone


def test_neither_jax_nor_pyplot_is_imported_and_no_display_is_needed(tmp_path):
    program = """
import sys
from experiments import drawing
assert not any(name.startswith(("matplotlib", "jax")) for name in sys.modules)
import numpy as np
image = np.ones((8, 8, 1))
drawing.perturbations("p.png", np.ones((2, 3, 8, 8)), [-0.1, 0, 0.1])
drawing.reconstructions("r.png", [drawing.ReconstructionColumn(image, image, 0, 1, 0)], "ab")
drawing.training_curves("c.png", [dict(step=1, epoch=1, loss=1.0, accuracy=0.5)])
drawing.logit_changes("l.png", [dict(step=1, epoch=1, logit_change=[1.0])])
drawing.routing_diagnostics("d.png", [1.0, 0.5], [1.0], [0.0, 1.0], "ab")
drawing.coupling_matrix("m.png", np.ones((3, 2)), "ab")
assert "matplotlib.pyplot" not in sys.modules and "jax" not in sys.modules
"""
    environment = {**os.environ, "MPLBACKEND": "TkAgg",
                   "PYTHONPATH": str(Path(plots.__file__).parents[2])}
    environment.pop("DISPLAY", None)
    subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=tmp_path,
                   env=environment, check=True)
    assert sorted(os.listdir(tmp_path)) == ["c.png", "d.png", "l.png", "m.png", "p.png", "r.png"]
