"""Sweeps whose runs stop before their end, or failed before."""

import types

import numpy as np
import pytest
from helpers import MNIST
from made_up_sweep import correct, entry
from PIL import Image

from experiments.config import UserError
from experiments.data import datasets
from experiments.data.image_folder import ImageOptions
from experiments.sweeps import executors, ledger, plan, runner
from experiments.sweeps.studies import product

DATA = types.SimpleNamespace(checksum="c")
GIVEN = {"dataset": "digits", "preset": "tiny", "max_minutes": 5.0}


def make_sweep(folder, given, **axes):
    study = product(axes or {"optimizer": ("adam", "lamb")}, ("0",))
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

    def child(job, log, started_process):
        started.append(job)
        log.write_text("stopped after step 3; the same command continues\n")
        return 0

    monkeypatch.setattr(executors, "_child", child)
    with pytest.raises(SystemExit) as end:
        runner.complete(sweep, runs)
    assert end.value.code == 0 and len(started) == 2
    assert capsys.readouterr().out == "2 runs have stopped; the same command continues them\n"
    assert sweep.entries() == {} and not list(tmp_path.glob("*/error.txt"))
    statuses = iter((2, 0))
    monkeypatch.setattr(executors, "_child", lambda *_: next(statuses))
    with pytest.raises(SystemExit) as end:
        runner.complete(sweep, runs)
    assert end.value.code == 1, "another run failed"
    assert ["error" in one for one in sweep.entries().values()] == [True]


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


@pytest.mark.parametrize("how", ["missing", "null"])
@pytest.mark.parametrize(
    "name", ["seconds", "together", "correct", "training_seconds", "peak_memory_mb", "test_error"]
)
def test_entries_without_what_reports_need_are_left_out(tmp_path, capsys, name, how):
    sweep = make_sweep(tmp_path, GIVEN)
    good, bad = (
        entry(run.key, correct(3, 0)) for run in sweep.runs(plan.candidates(sweep.study), ("0",))
    )
    values = bad if name in bad else bad["summary"]
    values[name] = None
    if how == "missing":
        del values[name]
    ledger.append(sweep.ledger, good)
    ledger.append(sweep.ledger, bad)
    ledger.say.cache_clear()
    assert list(sweep.entries()) == [good["key"]]
    assert "left out" in (said := capsys.readouterr().err) and name in said


def test_keys_of_others_are_no_reason_to_fail(tmp_path):
    """A command in a ledger may have values that its flags can't have."""
    sweep = make_sweep(tmp_path, GIVEN)
    run, _ = sweep.runs(plan.candidates(sweep.study), ("0",))
    checksum = datasets.load("digits", cache_dir=tmp_path).checksum
    ledger.append(sweep.ledger, entry(run.key, correct(3, 0), data_checksum=checksum))
    for flag in ("validation_fraction=x", "split_seed=y"):
        key = f"python -m experiments.mnist --{flag}"
        ledger.append(sweep.ledger, entry(key, correct(3, 0), data_checksum="other"))
    assert len(sweep.entries()) == 3


def test_the_check_of_data_leaves_large_data_where_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "free_bytes", lambda: 1000)
    given = {}
    monkeypatch.setattr(datasets, "load", lambda name, **options: given.update(options) or DATA)
    assert runner._checksum.__wrapped__(("digits", 0.05, *ImageOptions()), "", str(tmp_path)) == "c"
    assert 0 < given["resident_bytes"] < 1000


def test_results_on_image_files_are_of_the_same_data_whatever_the_flags_are(tmp_path):
    """The contents of such a data set depend on how images are read and split."""
    folder = tmp_path / "pictures"
    for n, name in enumerate(["cat", "dog"] * 10):
        (folder / name).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(n).integers(0, 256, (18, 24), np.uint8)
        Image.fromarray(pixels).save(folder / name / f"{n}.png")
    given = {"dataset": f"{folder}/", "preset": "tiny", "image_size": "20,20", "max_shift": 1}
    given |= {"validation_fraction": 0.25, "test_fraction": 0.3}
    sweep = make_sweep(tmp_path, given, resize=("pad", "crop"))
    for run in sweep.runs(plan.candidates(sweep.study), ("0",)):
        options = ImageOptions(**{n: getattr(run.config, n) for n in ImageOptions._fields})
        data = datasets.load(
            f"{folder}/", cache_dir=tmp_path, validation_fraction=0.25, options=options
        )
        own = {"data_checksum": data.checksum, "dataset": data.name}
        ledger.append(sweep.ledger, entry(run.key, correct(3, 0), seed=0, **own))
    assert len({one["summary"]["data_checksum"] for one in sweep.entries().values()}) == 2
    Image.new("L", (24, 18), 7).save(folder / "dog" / "1.png")
    runner._checksum.cache_clear()
    with pytest.raises(UserError, match="with the checksum"):
        sweep.entries()
