"""Sweeps whose runs stop before their end."""

import pytest
from helpers import MNIST

from experiments.sweeps import executors, plan, runner
from experiments.sweeps.studies import product

GIVEN = {"dataset": "digits", "preset": "tiny", "max_minutes": 5.0}


def make_sweep(folder, given):
    study = product({"optimizer": ("adam", "lamb")}, ("0",))
    where = (MNIST, (0, 1), "auto", 1, "local", ())
    return runner.Sweep("grid", study, given, folder, *where)


def test_a_sweep_ends_when_all_its_runs_are_stopped_by_the_clock(tmp_path, monkeypatch, capsys):
    sweep = make_sweep(tmp_path, GIVEN)
    runs = sweep.runs(plan.candidates(sweep.study), ("0",))
    assert [run.config.max_minutes for run in runs] == [5.0, 5.0]
    unlimited = make_sweep(tmp_path, {k: v for k, v in GIVEN.items() if k != "max_minutes"})
    again = unlimited.runs(plan.candidates(sweep.study), ("0",))
    assert [run.key for run in again] == [run.key for run in runs], "no part of the identity"
    started = []

    def local(tasks, jobs):
        for task in tasks:
            started.append(task)
            yield []

    monkeypatch.setattr(executors, "local", local)
    with pytest.raises(SystemExit) as end:
        runner.complete(sweep, runs)
    assert end.value.code == 0 and len(started) == 2
    assert capsys.readouterr().out == "2 runs have stopped; the same command continues them\n"
