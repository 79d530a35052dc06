"""Sweeps whose runs stop before their end, or failed before."""

import pytest
from helpers import MNIST
from made_up_sweep import correct, entry

from experiments.sweeps import executors, ledger, plan, runner
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


def test_lines_about_failures_decide_nothing(tmp_path, monkeypatch):
    # They have no checksum of the data: whatever they were trained on, the runs are trained again,
    # and the result, which has one, takes their place.
    sweep = make_sweep(tmp_path, GIVEN)
    runs = sweep.runs(plan.candidates(sweep.study), ("0",))
    for run in runs:
        ledger.append(sweep.ledger, ledger.failure(run.key, "of other data"))
    assert plan.choose(runs, sweep.entries()) == {}
    started = []

    def local(tasks, jobs):
        for task in tasks:
            started.extend(task["runs"])
            yield [entry(run["key"], correct(3, 0), seed=0) for run in task["runs"]]

    monkeypatch.setattr(executors, "local", local)
    assert runner.complete(sweep, runs) == []
    assert sorted(run["key"] for run in started) == sorted(run.key for run in runs)
    entries = sweep.entries()
    assert all("summary" in entries[run.key] and "error" not in entries[run.key] for run in runs)
