"""The command vote."""

import collections
import dataclasses
import json

import numpy as np
import pytest
from helpers import TINY, train

from experiments import vote
from experiments.analysis import saved_run
from experiments.config import UserError
from experiments.tasks import figures
from experiments.tasks.predictions import network_of, predict

HERE = vote.Flags(accelerator="cpu", cache_dir="none")


@pytest.fixture(scope="module")
def runs(tiny_run, tmp_path_factory):
    """Three runs of networks of different kinds."""
    folders = [str(tiny_run)]
    for changes in ({"model": "cnn"}, {"routing": "inverted", "seed": 1, "reconstruction": False}):
        folder = str(tmp_path_factory.mktemp("voters") / "run")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(figures, "of_finished_run", lambda *_: [])
            train(dataclasses.replace(TINY, batch_size=16, workdir=folder, **changes))
        folders.append(folder)
    return folders


def count_by_loops(scores, labels):
    """Errors of each network, of the vote, and of the mean, image by image."""
    wrong = np.zeros(len(scores) + 2, int)
    for n, label in enumerate(labels):
        named = [int(np.argmax(one[n])) for one in scores]
        mean = sum(one[n] for one in scores) / len(scores)
        counts = collections.Counter(named)
        tied = [k for k in counts if counts[k] == max(counts.values())]
        decided = max(tied, key=lambda k: mean[k])
        wrong += np.array([*named, decided, int(np.argmax(mean))]) != label
    return list(wrong)


@pytest.mark.parametrize("networks", [2, 3, 4])
def test_counts_equal_loops(networks):
    rng = np.random.default_rng(networks)
    labels = rng.integers(0, 4, 300)
    scores = [rng.uniform(size=(300, 4)) + 0.3 * np.eye(4)[labels] for _ in range(networks)]
    rows = vote.measure(scores, labels)
    assert [row["test_errors"] for row in rows] == count_by_loops(scores, labels)
    assert len({row["test_errors"] for row in rows[-2:]} | {rows[0]["test_errors"]}) == 3
    assert rows[0]["test_error"] == pytest.approx(rows[0]["test_errors"] / 3, abs=1e-4)


def test_a_vote_without_majority_is_decided_by_the_mean():
    scores = [np.array([row]) for row in ([0.9, 0.8, 0.0], [0.0, 0.8, 0.7], [0.0, 0.5, 0.6])]
    each, [decided, mean] = (rows := vote.measure(scores, np.array([2])))[:3], rows[3:]
    assert [row["test_errors"] for row in each] == [1, 1, 0]
    assert (decided["test_errors"], mean["test_errors"]) == (1, 1)
    # Two name class 2 with small scores; the mean is largest for class 1.
    scores[1] = np.array([[0.0, 0.65, 0.7]])
    *_, decided, mean = vote.measure(scores, np.array([2]))
    assert (decided["test_errors"], mean["test_errors"]) == (0, 1)


def test_runs_of_several_kinds(runs, tmp_path, capsys):
    vote.main(dataclasses.replace(HERE, output=str(tmp_path / "vote")), *runs)
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "vote.json").read_text())
    opened = [
        saved_run.open_run(f, accelerator="cpu", cache_dir="none", examples=True) for f in runs
    ]
    images, labels = opened[0].setup.pipeline.held_out("test")
    scores = []
    for one in opened:
        inputs = np.float32(images) / 255
        scores.append(predict(network_of(one.setup), one.variables, inputs).scores)
        assert saved_run.current_summary(one)["test_errors"] == int(
            (scores[-1].argmax(1) != labels).sum()
        )
    assert [row["test_errors"] for row in result["networks"]] == count_by_loops(scores, labels)
    assert result["seed"] == [0, 0, 1] and len(result["runs"]) == 3
    assert "tiny cnn on digits, seed 0" in printed and "| vote |" in printed
    assert result["command"] == "python -m experiments.vote DIR DIR DIR"


def test_unsuitable_runs(runs, tmp_path, monkeypatch):
    def fails(*folders, **changes):
        with pytest.raises(UserError) as error:
            vote.main(dataclasses.replace(HERE, **changes), *folders)
        return str(error.value)

    assert "two different finished runs" in fails(runs[0]) == fails(runs[0], runs[0])
    assert "two different finished runs" in fails(runs[1], runs[0], f"{runs[1]}/")
    assert "no such folder" in fails(runs[0], str(tmp_path / "none"))
    assert "is a folder" in fails(*runs, output=str(tmp_path))
    opened = {folder: vote.open_finished(folder, HERE) for folder in runs[:2]}
    setup = opened[runs[1]].setup
    data = setup.dataset._replace(test_images=setup.dataset.test_images[::-1])
    moved = setup._replace(
        pipeline=setup.pipeline._replace(held_out=lambda _: (data.test_images, 0))
    )
    opened[runs[1]] = opened[runs[1]]._replace(setup=moved)
    with monkeypatch.context() as patch:
        patch.setattr(vote, "open_finished", lambda folder, flags: opened[folder])
        assert "other test images" in fails(*runs[:2])
    pairs = setup._replace(pipeline=setup.pipeline._replace(labels=2))
    one = saved_run.open_run(runs[1], accelerator="cpu", cache_dir="none", examples=True)
    monkeypatch.setattr(saved_run, "open_run", lambda *_, **__: one._replace(setup=pairs))
    assert "have several" in fails(*runs[:2])
