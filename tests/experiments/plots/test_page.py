"""What all figures have in common: titles, saving, threads, and imports."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from figure_helpers import (
    CLOTHES,
    DIGITS,
    assert_legible,
    columns,
    layer,
    pixels,
    routed,
    run,
    words,
)
from matplotlib.figure import Figure

from experiments import plots
from experiments.plots import (
    reconstructions,
    routing,
    training_curves,
)


def test_titles_are_shown_wrapped_and_plain():
    title = "Costs $5 and $6, " + "with words " * 20
    grid = np.ones((2, 3, 8, 8)), [-0.1, 0.0, 0.1]
    for figure in (
        training_curves._training_curves_figure(run(), title),
        reconstructions._reconstructions_figure(columns(1, 0), DIGITS, title),
        reconstructions._perturbations_figure(*grid, None, title),
        training_curves._logit_changes_figure(routed(3, 3), title),
        routing._routing_diagnostics_figure(*layer(3, 10), DIGITS, title),
        routing._coupling_matrix_figure(np.ones((8, 2)), "ab", title),
        routing._coupling_matrix_figure(np.ones((8, 2)), "ab", title, (2, 2, 2)),
    ):
        assert_legible(figure)
        shown = words(figure)[0]
        assert shown.split() == title.split() and shown.count("\n") >= 2


def test_failed_saving_leaves_the_old_figure_and_no_other_file(tmp_path, monkeypatch):
    path = tmp_path / "curves.png"
    plots.plot_training_curves(path, run())
    old = path.read_bytes()

    def fail(self, name, **kwargs):
        assert Path(name).parent == tmp_path and Path(name) != path
        Path(name).write_bytes(b"half a figure")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        plots.plot_training_curves(path, [])
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["curves.png"]


def test_figure_is_replaced_in_one_move_and_paths_may_be_strings(tmp_path):
    path = tmp_path / "curves.png"
    path.write_bytes(b"old")
    with open(path, "rb") as reader:
        plots.plot_training_curves(str(path), run())
        assert reader.read() == b"old", "the old file must not change under its readers"
    assert pixels(path).shape[1] == 1050
    assert os.listdir(tmp_path) == ["curves.png"]


def test_suffix_chooses_the_format(tmp_path):
    for name, start in (("a.pdf", b"%PDF-"), ("a.png", b"\x89PNG")):
        plots.plot_training_curves(tmp_path / name, run())
        assert (tmp_path / name).read_bytes().startswith(start)
    with pytest.raises(ValueError, match="xyz"):
        plots.plot_training_curves(tmp_path / "a.xyz", run())
    assert sorted(os.listdir(tmp_path)) == ["a.pdf", "a.png"]


def test_figures_from_several_threads_equal_those_of_one_thread(tmp_path):
    jobs = [
        (plots.plot_training_curves, run(200)),
        (plots.plot_training_curves, run(400)),
        (plots.plot_reconstructions, columns(1, 0), CLOTHES),
        (plots.plot_reconstructions, columns(0, 1), CLOTHES),
    ]

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
from experiments import plots
assert not any(name.startswith(("matplotlib", "jax")) for name in sys.modules)
import numpy as np
image = np.ones((8, 8, 1))
plots.plot_perturbations("p.png", np.ones((2, 3, 8, 8)), [-0.1, 0, 0.1])
plots.plot_reconstructions("r.png", [plots.ReconstructionColumn(image, image, 0, 1, 0)], "ab")
plots.plot_training_curves("c.png", [dict(step=1, epoch=1, loss=1.0, accuracy=0.5)])
plots.plot_logit_changes("l.png", [dict(step=1, epoch=1, logit_change=[1.0])])
plots.plot_routing_diagnostics("d.png", [1.0, 0.5], [1.0], [0.0, 1.0], "ab")
plots.plot_coupling_matrix("m.png", np.ones((3, 2)), "ab")
assert "matplotlib.pyplot" not in sys.modules and "jax" not in sys.modules
"""
    environment = {
        **os.environ,
        "MPLBACKEND": "TkAgg",
        "PYTHONPATH": str(Path(plots.__file__).parents[2]),
    }
    environment.pop("DISPLAY", None)
    subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=tmp_path, env=environment, check=True
    )
    assert sorted(os.listdir(tmp_path)) == ["c.png", "d.png", "l.png", "m.png", "p.png", "r.png"]
