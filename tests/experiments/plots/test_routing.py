"""Figures of routing diagnostics and of coupling matrices."""

import os

import numpy as np
import pytest
from figure_helpers import (
    CLOTHES,
    DIGITS,
    INF,
    NAN,
    assert_legible,
    layer,
    pixels,
    routed,
    texts,
    words,
)
from matplotlib.colors import to_hex

from experiments import plots
from experiments.plots import (
    routing,
)

SIGNS = [f"Speed limit ({k}0km/h)" if k % 3 else "Road narrows on the right" for k in range(43)]
LAYERS = [
    (1, 2, ["no", "yes"]),
    (3, 10, DIGITS),
    (7, 10, CLOTHES),
    (3, 43, SIGNS),
    (2, 1, ["one"]),
    (7, 100, range(100)),
    (12, 25, ["$x^2$"] * 25),
    (3, 100, SIGNS + SIGNS + SIGNS[:14]),
]


@pytest.mark.parametrize("passes, outputs, names", LAYERS)
def test_routing_diagnostics_are_legible(passes, outputs, names):
    figure = routing._routing_diagnostics_figure(*layer(passes, outputs), names, "A title")
    assert_legible(figure)
    for axes in figure.axes[1:]:
        assert axes.get_window_extent().x1 <= figure.bbox.x1


@pytest.mark.parametrize("passes, outputs", [(1, 2), (2, 1), (7, 10)])
def test_routing_diagnostics_draw_the_numbers(passes, outputs):
    entropy, change, activity = layer(passes, outputs)
    figure = routing._routing_diagnostics_figure(entropy, change, activity, range(outputs))
    whole_page, left, right, bars = figure.axes
    np.testing.assert_array_equal(
        left.lines[0].get_xydata(), np.stack([np.arange(passes) + 1, entropy], 1)
    )
    np.testing.assert_array_equal(
        right.lines[0].get_xydata(), np.stack([np.arange(passes - 1) + 2, change], 1)
    )
    assert left.get_xlim() == right.get_xlim() and left.get_ylim() == (0, 1.05)
    heights = [bar.get_height() for bar in bars.patches]
    np.testing.assert_array_equal(heights, activity)
    assert ("a single pass: no change" in words(figure)) == (passes == 1)
    middles = [
        bars.transData.transform((bar.get_x() + bar.get_width() / 2, 0))[0] for bar in bars.patches
    ]
    below = [text.get_window_extent() for text in whole_page.texts if text.get_text().isdigit()]
    np.testing.assert_allclose([(b.x0 + b.x1) / 2 for b in below], middles, atol=2)


def test_output_capsules_never_and_always_active_are_marked_and_counted():
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


def test_long_names_of_output_capsules_are_cut():
    for figure in (
        routing._routing_diagnostics_figure([1.0], [], np.ones(2), ["x" * 40, "y"]),
        routing._coupling_matrix_figure(np.ones((3, 2)), ["x" * 40, "y"]),
    ):
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
@pytest.mark.parametrize("outputs, names", [case[1:] for case in LAYERS])
def test_coupling_matrices_are_legible(outputs, names, grid):
    coupling = np.random.default_rng(0).dirichlet(np.ones(outputs), 24)
    figure = routing._coupling_matrix_figure(coupling, names, "A title", grid)
    assert_legible(figure)
    written = [extent for _, extent in texts(figure)]
    images = [image.get_window_extent() for image in figure.axes[0].images]
    assert len(images) == 1 + (1 if grid is None else outputs)
    for k, extent in enumerate(images):
        assert 0 <= extent.x0 and extent.x1 <= figure.bbox.x1 and 0 <= extent.y0
        assert not any(extent.overlaps(other) for other in written + images[:k])


def test_input_capsules_go_down_and_output_capsules_across(tmp_path):
    path, coupling = tmp_path / "m.png", np.full((4, 3), 1 / 3)
    coupling[2], coupling[3] = (0, 0, 1), (1, 0, 0)
    plots.plot_coupling_matrix(path, coupling, "abc")
    figure = routing._coupling_matrix_figure(coupling, "abc")
    image, blue = pixels(path), (0, 0x72, 0xB2)
    extent = figure.axes[0].images[0].get_window_extent()
    heads = [
        text.get_window_extent() for text in figure.axes[0].texts if text.get_text() in tuple("abc")
    ]
    for i, row in enumerate(coupling):
        for head, value in zip(heads, row, strict=True):
            x, top = round((head.x0 + head.x1) / 2), figure.bbox.y1 - extent.y1
            for part in (0.1, 0.5, 0.9):
                color = image[round(top + (i + part) * extent.height / 4), x]
                if value == 1:
                    assert abs(color - blue).max() <= 2
                elif value == 0:
                    assert color[0] > color[1] > color[2], "red, but pale: 0 is near 1/3"
                else:
                    assert color.min() > 250


def test_no_coupling_is_lost_among_many_input_capsules(tmp_path):
    path, coupling = tmp_path / "m.png", np.full((1152, 10), 0.1)
    for capsule in (5, 100, 577, 578, 1150):  # at the very edge is the frame
        coupling[:, 4] = 0.1
        coupling[capsule, 4] = 1.0
        plots.plot_coupling_matrix(path, coupling, DIGITS)
        image = pixels(path)[100:]  # below the scale
        pale = image[..., 2] - image[..., 0]
        assert pale.max() > 45
        rows, columns = np.nonzero(pale > 45)
        assert np.ptp(rows) <= 2 and 80 < np.ptp(columns) < 95


def test_colours_are_centred_on_the_uniform_coupling():
    for outputs, others in ((2, 0.0), (10, 0.099), (10, 0.09), (3, 0.3)):
        coupling = np.full((5, outputs), 1 / outputs)
        coupling[1, 0] = others
        figure = routing._coupling_matrix_figure(coupling, range(outputs))
        for image in figure.axes[0].images:
            low, high = image.get_clim()
            assert (low + high) / 2 == pytest.approx(1 / outputs)
            assert high - low == pytest.approx(2 * max(1 / outputs - others, 0.1 / outputs))
        assert f"1/{outputs}" in words(figure)


def test_colour_scale_ends_at_zero():
    coupling = np.zeros((4, 5))
    coupling[:, 0] = 1
    figure = routing._coupling_matrix_figure(coupling, range(5))
    scale = figure.axes[0].images[-1].get_array()
    assert (scale.min(), scale.max()) == (0, 1)
    assert {"0", "1/5", "1"} <= set(words(figure))
    for outputs in (2, 7, 10, 100):
        assert_legible(routing._coupling_matrix_figure(np.eye(outputs), range(outputs)))


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
        (head,) = [
            text.get_window_extent()
            for text in figure.axes[0].texts
            if text.get_text() == "abcd"[j]
        ]
        assert extent.x0 < head.x0 < head.x1 < extent.x1 and 0 < head.y0 - extent.y1 < 12


@pytest.mark.parametrize(
    "names, grid", [("abc", None), ("abcde", None), ("abc", (2, 3, 2)), ("abcd", (2, 3, 3))]
)
def test_names_and_grid_must_fit(names, grid, tmp_path):
    with pytest.raises(ValueError):
        plots.plot_coupling_matrix(tmp_path / "m.png", np.ones((12, 4)), names, grid=grid)
    if grid is None:
        with pytest.raises(ValueError):
            plots.plot_routing_diagnostics(tmp_path / "d.png", [1.0], [], np.ones(4), names)
    assert not os.listdir(tmp_path)


def test_figures_of_routing_are_saved(tmp_path):
    path = tmp_path / "new" / "d.png"
    for function, *arguments in [
        (plots.plot_routing_diagnostics, *layer(3, 10), DIGITS),
        (plots.plot_coupling_matrix, np.eye(10), DIGITS),
        (plots.plot_coupling_matrix, np.eye(10), DIGITS, "", (5, 1, 2)),
        (plots.plot_logit_changes, routed(3, 3)),
    ]:
        assert function(path, *arguments) is None
        assert os.listdir(path.parent) == ["d.png"]
        assert pixels(path).shape[1] == 1050 and (pixels(path) < 200).any(axis=-1).sum() > 1000
        path.unlink()
