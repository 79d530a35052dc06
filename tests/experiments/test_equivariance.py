"""The command equivariance."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import matplotlib.image
import npz_files
import numpy as np
import pytest
from helpers import TINY, read_json, train

from experiments import equivariance
from experiments.analysis import equivariance_report, feature_paths, saved_run
from experiments.config import UserError
from experiments.data.affine import Affine, warp
from experiments.equivariance import Flags
from experiments.tasks import figures


@pytest.fixture(scope="module")
def cnn_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cnn") / "run"
    config = dataclasses.replace(TINY, model="cnn", batch_size=16, workdir=str(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "of_finished_run", lambda *_: [])
        train(config)
    return folder


@pytest.mark.slow
def test_features_are_the_poses_of_the_labels(tiny_run, cnn_run, monkeypatch):
    """Checks three calls with a padded last batch; of a CNN, the input of the last layer."""
    monkeypatch.setattr(feature_paths, "BATCH", 32)
    monkeypatch.setattr(feature_paths, "BATCHES", 2)
    for folder in (tiny_run, cnn_run):
        opened = saved_run.open_run(str(folder), accelerator="cpu", examples=True)
        setup, params = opened.setup, opened.variables
        images, labels = (a[:130] for a in (setup.dataset.test_images, setup.dataset.test_labels))
        turns = np.linspace(-20, 20, 130).astype(np.float32)
        t = feature_paths.transformations("rotation", turns)
        got = feature_paths.make_features(setup, params)(images, labels, t)
        pixels = jnp.asarray(images[126:], jnp.float32) / 255
        turned = jax.jit(jax.vmap(lambda p, a: warp(p, Affine(rotation=a))))
        prediction = jax.jit(setup.model.apply)(params, turned(pixels, jnp.asarray(turns[126:])))
        if folder == tiny_run:
            assert got.shape == (130, 16)
            want = [prediction.pose[n, label] for n, label in enumerate(labels[126:])]
            np.testing.assert_allclose(got[126:], want, atol=1e-5)
        else:
            last = params["dense"]["1"]
            logits = got[126:] @ np.asarray(last["kernel"]) + np.asarray(last["bias"])
            np.testing.assert_allclose(logits, prediction.scores, atol=1e-5)


@pytest.mark.slow
def test_program(tiny_run, cnn_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(feature_paths, "STEPS", 5)
    monkeypatch.setattr(equivariance_report, "STEPS", 5)
    flags = Flags(
        run=str(tiny_run),
        compare=str(cnn_run),
        images=60,
        train_images=150,
        output=str(tmp_path / "new" / "e"),
        accelerator="cpu",
        cache_dir="none",
    )
    equivariance.main(flags)
    out = capsys.readouterr().out
    found = read_json(tmp_path / "new" / "e.json")
    capsnet, cnn = found["networks"]
    assert (capsnet["features"], cnn["features"]) == (16, 32)
    assert "probes_of_components" in cnn and "probes_of_components" not in capsnet
    for network in found["networks"]:
        assert set(network["paths"]) == set(feature_paths.MAX_AMOUNTS)
        assert (network["images"], network["train_images"]) == (60, 150)
        assert all(-1 < path["linear"] <= 1 for path in network["paths"].values())
    text = (tmp_path / "new" / "e.md").read_text()
    body, _, foot = text.rpartition("\n\n")
    command = "python -m experiments.equivariance --run=DIR --compare=DIR --images=60"
    assert found["command"] == f"{command} --train_images=150"
    assert found["seed"] == [0, 0]
    assert foot == f"`{found['command']}`, commit {found['commit']}\n"
    assert body in out and text.count("\n| ") == 13 and "| thickness |  |" in text
    for name in ("e_paths.png", "e_probes.png"):
        assert matplotlib.image.imread(tmp_path / "new" / name).shape[1] == 1050
    assert not (tiny_run / "equivariance.json").exists()


def test_user_errors(tiny_run, tmp_path):
    def fails(**changes):
        with pytest.raises(UserError) as failed:
            equivariance.main(dataclasses.replace(Flags(accelerator="cpu"), **changes))
        return str(failed.value)

    assert "--run=DIR" in fails()
    assert str(tmp_path / "none") in fails(run=str(tmp_path / "none"))
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    for path in tiny_run.iterdir():
        if path.name != "summary.json":
            copy = shutil.copytree if path.is_dir() else shutil.copy
            copy(path, unfinished / path.name)
    assert "is not finished" in fails(run=str(unfinished))
    one = equivariance.open_finished(str(tiny_run), Flags(accelerator="cpu"))
    with pytest.MonkeyPatch.context() as patch:
        data = one.setup.dataset._replace(name="x", checksum="c")
        other = one._replace(setup=one.setup._replace(dataset=data))
        patch.setattr(equivariance, "open_finished", lambda f, _: other if f == "b" else one)
        assert "the runs have other data: digits and x" in fails(run="a", compare="b")
        patch.setattr(equivariance, "PROGRAMS", ("affnist",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(equivariance, "PROGRAMS", ("affnist",))
        assert "is a run of mnist, not of affnist" in fails(run=str(tiny_run))


def test_summaries_of_other_weights_or_data_are_refused(tiny_run, tmp_path):
    def fails(**changes):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(tiny_run, folder)
        path = folder / "summary.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        with pytest.raises(UserError) as failed:
            equivariance.open_finished(str(folder), Flags(accelerator="cpu"))
        return str(failed.value)

    assert "has gone on since its summary" in fails(steps=1)
    assert "with the checksum 0123" in fails(data_checksum="0123")


def test_sets_of_labels_are_refused(stored, tmp_path):
    arrays = npz_files.arrays((28, 28), 3) | {"multi_label": True}
    for split in ("train", "test"):
        arrays[f"{split}_labels"] = np.eye(3, dtype=np.uint8)[arrays[f"{split}_labels"]]
    train(npz_files.short("mnist", stored(arrays), tmp_path))
    with pytest.raises(UserError, match="need images of one class each"):
        equivariance.open_finished(str(tmp_path / "run"), Flags(accelerator="cpu"))


def test_samples_are_spread_over_all_images():
    """Arrays of users are often sorted by class."""
    labels = np.repeat(np.arange(10), 7)
    for count in (10, 20, 69, 70, 100, 0):
        images, found = equivariance_report.sample(10 * labels, labels, count)
        assert len(found) == min(count or 70, 70)
        assert (np.bincount(found, minlength=10) >= len(found) // 10).all()
        np.testing.assert_array_equal(images, 10 * found)
        assert (np.diff(found) >= 0).all()
