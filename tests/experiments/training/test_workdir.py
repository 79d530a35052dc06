"""Work directories: finished, damaged, in use, and of other runs."""

import dataclasses
import subprocess

import pytest
from helpers import TINY, metrics_rows, train

from experiments.config import UserError, resolve
from experiments.training.workdir import open_workdir


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    config = dataclasses.replace(TINY, workdir=str(workdir))
    return config, workdir, train(config)


def test_finished_run_is_only_reported_again(finished, monkeypatch):
    config, workdir, summary = finished
    before = metrics_rows(workdir)
    # The process that trained is to be reported, and not this one.
    for name in ("peak_memory_mb", "versions", "commit"):
        monkeypatch.setattr(f"experiments.training.summary.{name}", lambda *_: None)
    assert train(config) == summary
    assert metrics_rows(workdir) == before


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"seed": 1}, "seed=0 there, 1 here"),
        ({"routing_iterations": 2}, "routing_iterations=3 there, 2 here"),
        ({"steps": 1}, "already done 2 steps and 1 are asked for"),
    ],
)
def test_workdir_of_another_run_is_refused_and_unchanged(finished, changes, message):
    config, workdir, _ = finished
    before = (workdir / "config.json").read_text(), metrics_rows(workdir)
    with pytest.raises(UserError, match=message):
        train(dataclasses.replace(config, **changes))
    assert ((workdir / "config.json").read_text(), metrics_rows(workdir)) == before


def test_damaged_checkpoint_is_set_aside_and_the_run_repeated(
    finished, tmp_path, capsys, monkeypatch
):
    config, workdir, summary = finished
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", workdir, copy], check=True)
    for path in (copy / "checkpoints" / "2" / "default").rglob("*"):
        if path.is_file():
            path.write_bytes(b"damaged")
    monkeypatch.setattr("experiments.training.summary.commit", lambda: "the one that trained")
    again = train(dataclasses.replace(config, workdir=str(copy)))
    assert again["commit"] == "the one that trained"  # not that of the summary in the folder
    assert "checkpoint 2 is damaged" in capsys.readouterr().err
    assert again["test_loss"] == summary["test_loss"]
    assert {p.name for p in (copy / "checkpoints").iterdir()} == {"2", "2.damaged"}


def test_unwritable_workdir_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written"):
        train(dataclasses.replace(TINY, workdir=str(tmp_path / "file" / "run")))


def test_workdir_in_use_is_refused(tmp_path):
    config = resolve(dataclasses.replace(TINY, workdir=str(tmp_path)), "digits")
    with open_workdir(config):
        # The lock belongs to the opening, not to the process: this needs no second one.
        with pytest.raises(UserError, match="another process is training"):
            with open_workdir(config):
                pass
    with open_workdir(config):
        pass
