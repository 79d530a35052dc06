"""Figures of the paths and probes of equivariance."""

import numpy as np

from experiments import plots
from experiments.analysis import feature_paths
from experiments.plots.equivariance import _pose_paths_figure, _probes_figure


def test_figures_of_paths_and_probes(tmp_path):
    x = np.linspace(-3, 3, 13)
    changes = x[:, None] * np.array([0.1, -2, 0, 1, 0.5])
    paths = {name: (x, changes) for name in feature_paths.MAX_AMOUNTS}
    figure = _pose_paths_figure({"one": paths, "another": paths}, "title")
    assert len(figure.axes) == 11
    coloured = [line for line in figure.axes[1].lines if line.get_linewidth() > 1]
    np.testing.assert_array_equal(coloured[-1].get_ydata(), changes[:, 1])  # on top
    bars = {"one": {"rotation": 0.5, "thickness": -3.0}, "two": {"rotation": 1.0, "thickness": 0.2}}
    axes = _probes_figure(bars, "title").axes[1]
    assert [bar.get_height() for bar in axes.patches] == [0.5, 0, 1, 0.2]
    assert [t.get_text() for t in axes.texts] == ["0.50", "-3.00", "1.00", "0.20"]
    plots.plot_pose_paths(tmp_path / "paths.pdf", {"one": paths})
    assert (tmp_path / "paths.pdf").read_bytes()[:4] == b"%PDF"
