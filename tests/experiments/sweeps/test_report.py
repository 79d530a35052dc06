"""The report of a sweep: its files, notes and TensorBoard's hyper-parameters."""

import pytest
from helpers import MNIST, read_json
from made_up_sweep import STUDY, correct, entry, runs_of

from experiments.sweeps import plan, report, tables
from experiments.sweeps.studies import Study


def test_files(made, tmp_path):
    paths = report.write(made, tmp_path / "table")
    assert [path.suffix for path in paths] == [".md", ".csv", ".tex", ".png", ".json"]
    assert all(path.stat().st_size for path in paths) and len(list(tmp_path.iterdir())) == 5
    text = paths[0].read_text()
    assert tables.NOTE in text and text.endswith("--grid=a|b_c`, commit abc\n")
    assert r"--grid=a|b\_c, commit abc" in paths[2].read_text()
    stored = read_json(paths[4])
    assert stored["commit"] == ["abc"] and len(stored["runs"]) == 9 and len(stored["rows"]) == 3
    assert stored["runs"][4]["routing"] == "vb" and stored["runs"][4]["seed"] == 1
    assert stored["rows"][1]["comparison"]["verdict"] == "worse"
    assert stored["rows"][0]["errors"] == {"0": 1.0, "1": 2.0, "2": 4.5}


def test_all_versions_of_a_sweep_that_was_continued_are_named(made):
    assert report.to_json(made)["versions"] == {"jax": "1"}
    entries = dict(made.entries)
    for run, version in zip(made.runs, ("3", "2")):
        one = entries[run.key]
        versions = {"jax": version, "flax": "0"}
        entries[run.key] = one | {"summary": one["summary"] | {"versions": versions}}
    found = report.to_json(made._replace(entries=entries))["versions"]
    assert found == {"jax": "1, 2, 3", "flax": "0"}


def test_further_columns_and_notes(made):
    study = STUDY._replace(columns={"validation loss": "validation_loss"})
    assert "| validation loss |" in report.to_markdown(made._replace(study=study))
    more = {run.key: {"affine, %": 10.0 + run.config.seed} for run in made.runs}
    text = report.to_markdown(made._replace(extra_columns=more, notes=["A note."]))
    assert "| affine, % | difference (95% interval) |" in text and "| 11.00 ± 1.00 |" in text
    assert "\n\nA note.\n\n" in text
    assert f"{tables.NOTE} {tables.EXTRA_NOTE}\n\n" in text


def test_tuning_is_reported():
    study = Study(
        {"a": {}, "b": {"routing": "uniform"}},
        seeds=("0",),
        about="What is asked.",
        tuning={"learning_rate": ("0.001", "0.01")},
    )
    tried = runs_of(study, plan.candidates(study), (plan.TUNING_SEED,))
    scores = dict(zip((r.key for r in tried), (2.0, 1.0, 3.0)))
    entries = {k: entry(k, correct(5), validation_error=v) for k, v in scores.items()}
    runs = runs_of(study, plan.choose(tried, entries))
    assert [run.config.learning_rate for run in runs] == [0.01, 0.001]
    entries |= {r.key: entry(r.key, correct(6)) for r in runs}
    text = report.to_markdown(report.StudyReport("s", study, tried, runs, entries, "c", {}, []))
    assert text.startswith("What is asked.\n\nValidation error, %, of one run each")
    assert "| a | 2.00 | **1.00** |" in text and "| b | **3.00** | failed |" in text


def test_hparams(made, tmp_path):
    pytest.importorskip("tensorboardX")
    report.log_hparams(made.runs[:2], made.entries, MNIST, tmp_path / "board")
    folders = [run.workdir.name for run in made.runs[:2]]
    for name in folders:
        (path,) = (tmp_path / "board" / name).glob("events*")
        data = path.read_bytes()
        assert b"sweep/test_error" in data and b"_hparams_/session_start_info" in data
        assert b"routing" in data
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "board").rglob("*") if p.is_file()}
    report.log_hparams(made.runs[:2], made.entries, MNIST, tmp_path / "board")
    assert times == {
        p: p.stat().st_mtime_ns for p in (tmp_path / "board").rglob("*") if p.is_file()
    }
