"""Runs opened from their folders, and the errors of folders that hold none."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from helpers import MNIST, config_of, prepare_run, read_json, train
from npz_files import arrays, short

from experiments.analysis import saved_run
from experiments.analysis.saved_run import stored_config
from experiments.config import UserError, names_of
from experiments.data import datasets
from experiments.training import identity
from experiments.training.checkpoints import Checkpoints
from experiments.training.setup import initial_state


def files(folder):
    return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*")}


@pytest.fixture
def copy(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    return tmp_path / "run"


def test_a_run_opens_without_data_and_is_not_changed(tiny_run, monkeypatch):
    config = config_of(tiny_run)
    setup = prepare_run(config)
    with Checkpoints(tiny_run) as checkpoints:
        want = jax.device_get(checkpoints.restore(initial_state(setup)).params)
    before = files(tiny_run)

    monkeypatch.setattr(datasets, "load", lambda *_, **__: pytest.fail("data were loaded"))
    run = saved_run.open_run(tiny_run, accelerator="cpu", cache_dir="none")
    assert files(tiny_run) == before
    assert run.folder == tiny_run and run.step == 2
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(run.variables), want)
    assert run.setup.model_config == setup.model_config
    assert run.setup.dataset.class_names == tuple("0123456789")
    assert run.setup.dataset.image_shape == (28, 28, 1)
    assert run.setup.config == dataclasses.replace(config, workdir=str(tiny_run))
    images = setup.dataset.train_images
    edge = np.ones((28, 28), bool)
    edge[1:-1, 1:-1] = False
    medians = [np.median(image[edge, 0]) / 255 for image in images[:1000]]
    low, high = np.percentile(medians, [5, 95])
    np.testing.assert_allclose(run.facts["border"], [low, high], atol=1e-4)


@pytest.mark.parametrize("written", ["auto", None])
@pytest.mark.slow
def test_colour_images_are_normalized_as_in_training(written, stored, tmp_path):
    """Runs from before colour images were normalized say auto, or nothing, and are not."""
    folder = tmp_path / "run"
    train(short("mnist", stored(arrays((28, 28, 3), 10)), tmp_path))
    for examples in (False, True):
        opened = saved_run.open_run(folder, examples=examples).setup
        assert opened.model_config.input_norm == "image"
    setup = prepare_run(config_of(folder))
    assert setup.config == config_of(folder)
    path = folder / "config.json"
    contents = read_json(path)
    assert contents.pop("input_norm") == "image"
    path.write_text(json.dumps(contents | ({"input_norm": written} if written else {})))
    older = saved_run.open_run(folder).setup
    assert older.model_config.input_norm == "none" and older.config.input_norm == "preset"
    # The command that continues such a run.
    setup = prepare_run(dataclasses.replace(config_of(folder), input_norm="preset"))
    assert not identity.differences(setup.config, {}, read_json(path))


def test_examples_are_loaded_on_request(copy):
    (copy / "network.json").unlink()  # as in a run of an earlier version
    run = saved_run.open_run(copy, examples=True)
    assert len(run.setup.dataset.test_labels) == 360
    assert run.facts["class_names"] == list("0123456789")


def test_other_examples_than_those_of_the_training_are_refused(stored, tmp_path):
    train(short("mnist", stored(arrays((28, 28, 1), 10)), tmp_path))
    saved_run.open_run(tmp_path / "run", examples=True)
    others = arrays((28, 28, 1), 10)
    others["test_images"] = others["test_images"][::-1]
    stored(others)
    with pytest.raises(UserError, match="with the checksum"):
        saved_run.open_run(tmp_path / "run", examples=True)
    assert saved_run.open_run(tmp_path / "run").step


def test_local_settings_are_not_read_back(copy):
    path = copy / "config.json"
    there = {
        "num_devices": 8,
        "parallel": "pmap",
        "accelerator": "gpu",
        "batch_size": 136,
        "routing_implementation": "pallas",
        "cache_dir": "/nowhere",
    }
    path.write_text(json.dumps(read_json(path) | there))
    run = saved_run.open_run(copy, cache_dir="none")
    assert len(run.setup.devices) == 1 and run.setup.devices[0].platform == "cpu"
    assert run.setup.config.cache_dir == "none" and run.setup.config.batch_size == 136


def rewrite(name, **changes):
    def change(folder):
        path = folder / name
        path.write_text(json.dumps(read_json(path) | changes))

    return change


def test_settings_of_a_machine_are_not_read_from_a_run(copy):
    """A folder that somebody sends could name a cache of compiled programs inside itself."""
    there = {"cache_dir": str(copy / "cache"), "data_dir": "/data", "workdir": "/other"}
    there |= {"accelerator": "tpu", "num_devices": 8, "parallel": "pmap", "max_minutes": 7.0}
    there |= {"microbatch": 8, "input": "grain", "input_workers": 3, "shard_optimizer": True}
    there |= {"distributed": True, "coordinator": "other:1", "num_processes": 2, "process_id": 1}
    there |= {"capsule_shards": 2}
    assert there.keys() == set(names_of(MNIST, "local"))
    rewrite("config.json", **there)(copy)
    read = stored_config(copy)
    assert {name: getattr(read, name) for name in there} == {
        name: getattr(MNIST, name) for name in there
    }
    assert stored_config(copy, cache_dir="here").cache_dir == "here"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f: f.rename(f.with_name("rum")), r"run: no such folder, did you mean .*/rum\?"),
        (shutil.rmtree, "run: no such folder$"),
        (lambda f: (f / "config.json").unlink(), "config.json is no configuration of a run"),
        (
            lambda f: (f / "config.json").write_text('{"program": "mn'),
            "config.json is no .*Untermin",
        ),
        (lambda f: (f / "config.json").write_text("[]"), "config.json is no configuration"),
        (rewrite("config.json", program="mnits"), "no program 'mnits'; did you mean mnist"),
        (rewrite("config.json", routing="telepathy"), "is no .*of this version: .*telepathy"),
        (rewrite("config.json", temperature=3), "is no .*of this version: .*temperature"),
        (rewrite("config.json", flagfile="flags"), "is no .*of this version: 'flagfile'"),
        (rewrite("config.json", **{"cache_dir=there": "/"}), "'cache_dir=there' is no setting"),
        (rewrite("config.json", class_pose="large"), "is no .*of this version: .*class_pose"),
        (lambda f: shutil.rmtree(f / "checkpoints"), "has no checkpoint yet"),
        (lambda f: shutil.rmtree(f / "checkpoints" / "2"), "has no checkpoint yet"),
        (
            lambda f: shutil.rmtree(f / "checkpoints" / "2" / "default"),
            "has no checkpoint yet",
        ),
        (lambda f: (f / "network.json").unlink(), "network.json can't be read.*writes it again"),
        (lambda f: (f / "network.json").write_text("{}"), "network.json .*image_shape"),
        (
            rewrite("config.json", class_pose=9),
            r"checkpoint 2 .*read \(classes.kernel is \(144, 10, 16, 8\), not \(144, 10, 9, 8\)\)",
        ),
    ],
    ids=range(17),
)
def test_invalid_run_folders_are_refused(copy, change, message):
    change(copy)
    before = files(copy.parent)
    with pytest.raises(UserError, match=message):
        saved_run.open_run(str(copy))
    assert files(copy.parent) == before


@pytest.mark.parametrize("text", [None, "{", "{}", '{"program": "mnist", "no_such": 1}', "[]"])
def test_invalid_configuration_files_are_refused(text, tmp_path):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="config.json is no configuration of a run"):
        stored_config(tmp_path)
