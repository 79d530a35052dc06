"""Training curves, changes of logits, and losses of several runs."""

import os

import numpy as np
import pytest
from figure_helpers import (
    INF,
    NAN,
    assert_legible,
    lines,
    pixels,
    routed,
    run,
    training,
    validation,
    words,
)
from matplotlib.colors import to_hex

from experiments import plots
from experiments.plots import (
    training_curves,
)

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
    "wide": [training(k, 10.0**-k, 1 - 10.0**-k) for k in range(12)],
}


@pytest.mark.parametrize("name", HISTORIES)
def test_training_curves_of_any_run(name, tmp_path):
    path = tmp_path / "new" / "folder" / "curves.png"
    assert plots.plot_training_curves(path, HISTORIES[name]) is None
    image = pixels(path)
    assert image.shape[1] == 1050 and 400 < image.shape[0] < 500
    assert (image < 200).any(axis=-1).sum() > 1000
    assert os.listdir(path.parent) == ["curves.png"]


@pytest.mark.parametrize("name", ["run", "one row", "all zero", "flat", "wide"])
def test_training_curves_are_legible(name):
    assert_legible(training_curves._training_curves_figure(HISTORIES[name], "A title: " + name))


@pytest.mark.parametrize(
    "low, high",
    [
        (1e-3, 3.9e-3),
        (0.21, 0.9),
        (0.011, 0.099),
        (3.0, 900.0),
        (1e-4, 2.0),
        (1e-9, 1.0),
        (0.0, 0.7),
        (0.0, 0.11),
        (2.29, 2.31),
        (1e-7, 1e7),
    ],
)
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
    for label, key in (
        ("total", "loss"),
        ("margin", "margin_loss"),
        ("reconstruction", "reconstruction_loss"),
    ):
        expected = [(row["epoch"], row[key]) for row in rows if "loss" in row]
        np.testing.assert_allclose(lines(left)[label], expected)
    measured = [(row["epoch"], row["validation_error"]) for row in rows if "loss" not in row]
    np.testing.assert_allclose(lines(right)["validation"], measured)
    failed = [100 * (1 - row["accuracy"]) for row in rows if "loss" in row]
    assert len(lines(right)["training"]) == 25
    np.testing.assert_allclose(lines(right)["training"][:, 1].mean(), np.mean(failed))
    assert [text.get_text() for text in right.texts] == [f"{measured[-1][1]:.2f}%"]
    assert left.get_xlim() == right.get_xlim() == (0, 5.0)


def test_loss_without_components_is_one_curve():
    figure = training_curves._training_curves_figure([training(1), training(2)])
    assert list(lines(figure.axes[1])) == ["total"]


def test_losses_are_on_a_log_scale_and_zeros_are_shown():
    def heights(losses):
        axes = training_curves._training_curves_figure(
            [training(k, loss) for k, loss in enumerate(losses, 1)]
        ).axes[1]
        return axes.transAxes.inverted().transform(
            axes.transData.transform([(0.01, loss) for loss in losses])
        )[:, 1]

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
    rows = [
        training(1, 1.0),
        training(2, NAN),
        training(3, INF),
        training(4, None),
        training(5, 3.0),
    ]
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
    heights = axes.transData.transform([(1, ratio**-n) for n in range(3)])[:, 1]
    a, b = -np.diff(heights)
    assert a == pytest.approx(b, rel=0.01) and a > 0


def test_logit_changes_of_odd_rows():
    rows = [
        *routed(3, 3),
        dict(epoch=4.0, logit_change=[0.5]),
        dict(step=500, logit_change=[1.0]),
        dict(step=600, epoch=None, logit_change=[1.0, 1.0]),
        validation(700, 1.0),
        dict(step=800, epoch=8.0, logit_change=None),
        dict(epoch=9.0, logit_change=[NAN, None]),
    ]
    axes = training_curves._logit_changes_figure(rows).axes[1]
    assert [len(drawn) for drawn in lines(axes).values()] == [4, 3]
    for empty in ([], run(), routed(5, 1), [dict(step=1, epoch=1.0, logit_change=[NAN])]):
        assert "no changes recorded" in words(training_curves._logit_changes_figure(empty))


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
