"""Runs are identified by the contents of what they read, not by its name."""

import dataclasses
import hashlib
import json
import shutil

import jax
import numpy as np
import pytest
from helpers import QUICK, load_digits, prepare_run, read_json, train

from experiments.config import UserError
from experiments.data.dataset_cache import checksum
from experiments.training import identity


def save(path, labels_from=0):
    digits = load_digits()
    arrays = {n: getattr(digits, n)[:64] for n in ("train_images", "test_images")}
    arrays |= {n: (getattr(digits, n)[:64] + labels_from) % 10 for n in ("train_labels",)}
    np.savez(path, **arrays, test_labels=digits.test_labels[:64])
    return str(path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    data = save(folder / "data.npz")
    config = dataclasses.replace(QUICK, dataset=data, workdir=str(folder / "run"))
    train(config)
    return config, folder


def test_the_checksum_is_that_of_contents():
    a, b = np.arange(6, dtype=np.uint8), np.array(["x", "long"])
    want = hashlib.sha256(b"|u1 (6,);\0\1\2\3\4\5" + b"|S4 (2,);x\0\0\0long").hexdigest()[:32]
    assert checksum(a, b) == want == checksum(a[::-1][::-1], b.astype("U9"))
    assert checksum(a.reshape(2, 3), b) != want != checksum(a.astype(np.int8), b)


def test_corrected_data_of_the_same_name_are_refused_naming_both(finished, tmp_path):
    config, folder = finished
    shutil.copytree(folder / "run", tmp_path / "run")
    save(tmp_path / "data.npz", labels_from=1)
    changed = dataclasses.replace(config, workdir=str(tmp_path / "run"))
    before = (tmp_path / "run" / "config.json").read_text()
    old = read_json(tmp_path / "run" / "config.json")["recorded"]["data"]
    with pytest.raises(UserError, match=f"{old} there, [0-9a-f]{{32}} here") as error:
        train(dataclasses.replace(changed, dataset=str(tmp_path / "data.npz")))
    assert str(tmp_path / "data.npz") in str(error.value)
    assert (tmp_path / "run" / "config.json").read_text() == before


def test_the_same_data_may_be_elsewhere(finished, tmp_path):
    config, folder = finished
    shutil.copy(folder / "data.npz", tmp_path / "moved.npz")
    workdir = str(shutil.copytree(folder / "run", tmp_path / "run"))
    moved = dataclasses.replace(config, dataset=str(tmp_path / "moved.npz"), workdir=workdir)
    again = train(moved)
    assert again["data_checksum"] == read_json(folder / "run" / "config.json")["recorded"]["data"]


@pytest.mark.parametrize("name, moved", [("there/pets/", True), ("mnist", False)])
def test_a_folder_of_images_may_be_moved_but_a_data_set_has_one_name(name, moved):
    config = dataclasses.replace(QUICK, dataset="here/pets/")
    stored = vars(config) | {"dataset": name, "recorded": {"data": "ab"}}
    found = identity.differences(config, {"data": "ab"}, stored)
    assert found == ([] if moved else ["dataset=mnist there, here/pets/ here"])


@pytest.mark.parametrize("fields", [("recorded",), ("recorded", "validate_every")])
def test_runs_of_older_versions_go_on(finished, tmp_path, fields):
    config, folder = finished
    path = shutil.copytree(folder / "run", tmp_path / "run") / "config.json"
    path.write_text(json.dumps({n: v for n, v in read_json(path).items() if n not in fields}))
    train(dataclasses.replace(config, workdir=str(tmp_path / "run")))


def test_other_versions_are_said(finished, tmp_path, capsys):
    config, folder = finished
    path = shutil.copytree(folder / "run", tmp_path / "run") / "config.json"
    stored = read_json(path)
    stored["recorded"]["versions"]["jax"] = "0.1"
    path.write_text(json.dumps(stored))
    train(dataclasses.replace(config, workdir=str(tmp_path / "run")))
    assert "jax 0.1 before" in capsys.readouterr().err


def test_other_random_numbers_are_another_run(finished):
    config, folder = finished
    stored = read_json(folder / "run" / "config.json")
    record = dict(stored["recorded"])
    assert record["random_numbers"] == "32 bits"
    with jax.enable_x64(True):
        assert identity.record_of(prepare_run(config))["random_numbers"] == "64 bits"
    same = identity.differences(config, record, stored)
    changed = identity.differences(config, record | {"random_numbers": "64 bits"}, stored)
    assert changed == [*same, "random numbers of 32 bits there, 64 bits here (JAX_ENABLE_X64)"]


def test_the_folder_of_another_command_is_named_as_such(finished, tmp_path):
    config, folder = finished
    path = shutil.copytree(folder / "run", tmp_path / "run") / "config.json"
    path.write_text(json.dumps(read_json(path) | {"program": "cifar10", "ensemble": 7}))
    with pytest.raises(UserError, match=r"another run \(program=cifar10 there, mnist here\)"):
        train(dataclasses.replace(config, workdir=str(tmp_path / "run")))


BAD = ["", "[]", "null", "{", "\0", "[" * 10**5, '{"program": 3}', '{"program": "mnist", "x": 1}']


@pytest.mark.parametrize("text", [*BAD, None], ids=range(9))
def test_a_damaged_config_is_taken_from_the_checkpoint(finished, tmp_path, text, capsys):
    config, folder = finished
    workdir = shutil.copytree(folder / "run", tmp_path / "run")
    path = workdir / "config.json"
    path.unlink()
    if text is not None:
        path.write_text(text)
    config = dataclasses.replace(config, workdir=str(workdir))
    with pytest.raises(UserError, match="another run .seed=0 there, 1 here"):
        train(dataclasses.replace(config, seed=1))
    assert "the copy in checkpoint 2 is used" in capsys.readouterr().err
    (workdir / "checkpoints" / "2" / "config.json").unlink()
    (workdir / "checkpoints" / "2" / "checksums.json").unlink()
    with pytest.raises(UserError, match="it says which run this is"):
        train(config)
