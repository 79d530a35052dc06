"""Runs on images of many shapes, from the first line to the figures; figures that fail."""

import dataclasses
import re

import numpy as np
import pytest
from helpers import figure_names, read_json, run_command, train
from npz_files import arrays, short

from experiments import figures as figures_command
from experiments import plots
from experiments.analysis import saved_run
from experiments.config import UserError
from experiments.tasks import figures as run_figures
from experiments.tasks import registry
from experiments.training import loop

ROUTING = {"routing", "couplings", "logit_changes"}  # with --diagnostics
DECODED = {"reconstructions", "perturbations"}


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "shape, changes, kernels",
    [
        ((8, 8, 1), {"diagnostics": True}, "become 3x3 by 1, 3x3 by 2"),
        slow((9, 12, 2), {}, "become 3x3 by 1, 3x3 by 2"),
        slow((16, 16, 5), {}, "become 5x5 by 1, 5x5 by 2"),
        ((18, 17, 24), {}, ""),
        slow((16, 16, 5), {"preset": "deep", "diagnostics": True}, "3x3 by 1, 3x3 by 1, 2x2 by 1$"),
        slow((12, 9, 32), {"preset": "efficient"}, "become 3x3 by 1"),
        slow((8, 10, 3), {"preset": "matrix"}, "become 3x3 by 1, 1x1 by 1, 3x3 by 1, 3x3 by 1"),
        slow((8, 8, 5), {"preset": "cifar10", "reconstruction": True}, ""),
        slow((8, 9, 4), {"model": "cnn"}, ""),
        slow((128, 64, 3), {}, ""),
        slow((17, 128, 1), {}, ""),
    ],
    ids=str,
)
def test_every_shape_runs_to_its_figures(shape, changes, kernels, stored, tmp_path, capsys):
    path = stored(arrays(shape, 3))
    config = dataclasses.replace(short("mnist", path, tmp_path), **changes)
    summary = train(config)
    err = capsys.readouterr().err
    assert summary["steps"] == 2 and np.isfinite(summary["test_loss"])
    lines = [line for line in err.splitlines() if "its kernels and strides" in line]
    assert len(lines) == bool(kernels) and all(re.search(kernels, line) for line in lines)
    folder = tmp_path / "run"
    drawn = {"training_curves", "confusion_matrix"} | (ROUTING if config.diagnostics else set())
    if config.model == "capsnet" and config.preset != "matrix":  # which has no decoder
        drawn |= DECODED
    assert figure_names(folder) == drawn
    opened = saved_run.open_run(folder, accelerator="cpu", cache_dir="none")
    assert opened.setup.pipeline.shape == shape and opened.setup.parameters == summary["parameters"]


def test_a_figure_that_fails_costs_no_run(stored, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise ZeroDivisionError("no\nroom")

    config = short("mnist", stored(arrays((8, 8), 3)), tmp_path)
    program = registry.find_program("mnist")
    task = dataclasses.replace(program.task, report=fail, summary_figures=fail)
    with monkeypatch.context() as patch:
        patch.setattr(plots, "plot_reconstructions", fail)
        patch.setattr(run_figures, "of_training", fail)
        summary = loop.run(program._replace(task=task), config)
    out, err = capsys.readouterr()
    folder = tmp_path / "run"
    assert read_json(folder / "summary.json") == summary and "test" in out
    again = f"; the run is complete, and python -m experiments.figures --run={folder} plots its "
    for what in ("figures", "figure reconstructions", "figures", "report"):
        assert f"{what}: ZeroDivisionError: no{again}figures again\n" in err
    assert figure_names(folder) == {"confusion_matrix"}
    flags = figures_command.Flags(run=str(folder), accelerator="cpu", cache_dir="none")
    figures_command.main(flags)
    assert {"training_curves", "reconstructions", "perturbations"} <= figure_names(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.update(train_images=a["train_images"] - 128.0),
        lambda a: a.update(train_labels=a["train_labels"] - 1),
    ],
)
def test_arrays_that_are_refused_leave_nothing_behind(change, stored, tmp_path):
    values = arrays((8, 8), 3)
    change(values)
    with pytest.raises(UserError, match="^--dataset=.*a.npz: train_"):
        train(short("mnist", stored(values), tmp_path))
    assert not (tmp_path / "run").exists()


def test_refused_arrays_end_a_command_with_one_line(stored, tmp_path):
    path = stored(arrays((3, 8, 9), 3))
    done = run_command("mnist", f"--dataset={path}", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --dataset=") and "np.moveaxis(train_images, 1, -1)" in line
