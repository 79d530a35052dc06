"""The figure of the intervals of a sweep."""

from experiments import plots


def test_figure(tmp_path):
    from experiments.plots import sweep_intervals

    table = [plots.Dots("dynamic", [1.0, 2.0], 0.5, 2.5), plots.Dots("x" * 60, [3.0], 2, 4)]
    figure = sweep_intervals._intervals_figure([table, table[:1]], "A title")
    first, second = figure.axes[1:]
    assert [text.get_text() for text in first.get_yticklabels()] == ["dynamic", "x" * 43 + "…"]
    lines = [line.get_xydata().tolist() for line in first.lines]
    assert lines[0] == [[1.5, 0], [1.5, 1]], "the mean of the first row"
    assert lines[1:4] == [[[0.5, 0], [2.5, 0]], [[1, 0], [2, 0]], [[1.5, 0]]]
    assert second.get_xlabel() == "test error, %" and first.get_xlabel() == ""
    assert first.get_xlim() == second.get_xlim()
    assert first.get_ylim()[0] > first.get_ylim()[1], "the first row is at the top"
    table.append(plots.Dots(r"freeze=$\w+$", [3.0], 2, 4))  # no formulas
    plots.plot_intervals(tmp_path / "a.pdf", [table])
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
