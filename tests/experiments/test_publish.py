"""The command publish, and the pretrained networks in the package."""

import dataclasses
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import QUICK, load_digits, read_json, run_command, train
from picture_files import of, written

import capsjax
from capsjax.pretrained import files
from experiments import predict
from experiments import publish as publish_command
from experiments.analysis import publish, saved_run
from experiments.config import UserError
from experiments.training import initial_weights

FOLDER = os.environ.get("CAPSJAX_TEST_ARRAYS", "")
MOST_BYTES = 12 * 10**6  # of all packaged networks together


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Returns a finished run with averaged weights, opened with its examples."""
    folder = tmp_path_factory.mktemp("published") / "run"
    config = dataclasses.replace(QUICK, ema=0.5, preset="tiny", workdir=str(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.tasks.figures.of_finished_run", lambda *_: [])
        train(config)
    return saved_run.open_run(folder, examples=True, cache_dir="none")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_card_has_the_errors_of_the_stored_weights(opened, tmp_path, dtype, monkeypatch):
    monkeypatch.setattr(publish, "changed_decisions", lambda *_: 0)
    facts = publish.publish(opened, tmp_path / "net", dtype)
    model, params, labels, preprocessing = capsjax.load_pretrained(tmp_path / "net")
    kind = np.dtype(dtype)
    for got, reported in zip(jax.tree.leaves(params), jax.tree.leaves(opened.variables)):
        np.testing.assert_array_equal(got, np.float32(np.asarray(reported).astype(kind)))
    digits = load_digits()
    scores = jax.jit(lambda p, x: model.apply(p, preprocessing(x)).scores)(
        params, jnp.asarray(digits.test_images)
    )
    errors = int((np.asarray(scores).argmax(1) != digits.test_labels).sum())
    card = (tmp_path / "net" / "README.md").read_text()
    assert f"{errors} of {len(digits.test_labels)} test images are wrong" in card
    assert "averaged with decay 0.5, after step 2" in card and facts["test_errors"] == errors
    if dtype == "float32":
        assert errors == read_json(opened.folder / "summary.json")["test_errors"]
    assert ("| stored as float16 | 0 of" in card) == (dtype == "float16")
    assert labels == tuple("0123456789") and preprocessing.border == tuple(opened.facts["border"])
    assert publish.probe(model, params, preprocessing) == facts["probe"]


def test_changed_decisions_are_counted_and_refused(opened, tmp_path, monkeypatch):
    before = {"prediction": np.array([1, 2, 3, 4]), "accuracy": np.array([1, 0, 1, 1])}
    after = {"prediction": np.array([1, 3, 3, 4]), "accuracy": np.array([1, 0, 1, 0])}
    assert publish.changed_decisions(before, after) == 2
    assert publish.changed_decisions(before, before) == 0
    monkeypatch.setattr(publish, "changed_decisions", lambda *_: 2)
    with pytest.raises(UserError, match="float16 changes 2 of 360 test decisions"):
        publish.publish(opened, tmp_path / "net", "float16")
    assert not (tmp_path / "net").exists()


def test_numbers_that_float16_has_not_are_refused(opened, tmp_path):
    params = jax.tree.map(lambda x: x * 0 + 1e5, opened.variables)
    with pytest.raises(UserError, match="not finite in float16; use --dtype=float32"):
        publish.publish(opened._replace(variables=params), tmp_path / "net", "float16")


def test_unfinished_runs_and_other_data_are_refused(opened, tmp_path):
    dataset = opened.setup.dataset._replace(checksum="another")
    other = opened._replace(setup=opened.setup._replace(dataset=dataset))
    cases = {
        "is not finished": opened._replace(folder=tmp_path),
        "has gone on since": opened._replace(step=1),
        "with the checksum": other,
    }
    for message, run in cases.items():
        with pytest.raises(UserError, match=message):
            publish.publish(run, tmp_path / "net")


def test_predict_reads_a_pretrained_network_as_its_run(opened, tmp_path, capsys, ten_digits):
    net = tmp_path / "net"
    publish.publish(opened, net)
    image = written(tmp_path, of(np.uint8(255 * ten_digits[3, ..., 0])), "three.png")
    tables = []
    for place in ({"model": str(net)}, {"run": str(opened.folder)}):
        output = str(tmp_path / "p.png")
        flags = predict.Flags(**place, json=True, output=output, cache_dir="none")
        predict.main(flags, str(image))
        tables.append((capsys.readouterr().out, read_json(tmp_path / "p.json")))
    assert tables[0] == tables[1] and "as it is, pad" in tables[0][0]
    before = sorted(os.listdir(tmp_path))
    predict.main(predict.Flags(model=str(net), cache_dir="none"), str(image))
    assert sorted(os.listdir(tmp_path)) == before


def test_a_home_folder_is_found(opened, tmp_path, monkeypatch):
    publish.publish(opened, tmp_path / "net", "float32")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert capsjax.load_pretrained("~/net").labels == tuple("0123456789")
    found = initial_weights.read_source("~/net")
    assert found.keys() == initial_weights.read_source(str(tmp_path / "net")).keys()
    assert initial_weights.read_source(str(opened.folder)).keys() == found.keys()


def test_the_command_makes_a_new_folder(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(saved_run, "open_run", lambda *_, **__: opened)
    flags = publish_command.Flags(run=str(opened.folder), output=str(tmp_path / "net"))
    publish_command.main(flags)
    names = {files.WEIGHTS, files.CONFIG, files.CARD}
    assert set(os.listdir(tmp_path / "net")) == names and os.listdir(tmp_path) == ["net"]
    assert "\n# net\n" in (tmp_path / "net" / files.CARD).read_text()
    config = (opened.folder / "config.json").read_text()
    for there in (tmp_path / "net", opened.folder):
        with pytest.raises(UserError, match="exists already; name a new folder"):
            publish_command.main(dataclasses.replace(flags, output=str(there)))
    assert (opened.folder / "config.json").read_text() == config


def test_missing_flags():
    done = run_command("publish", "--run=nowhere")
    assert done.returncode == 2 and "error: give a finished run and a folder" in done.stderr


def test_probe_images_are_made_up_and_differ():
    images = publish.probe_images((28, 28, 1))
    assert images.shape == (32, 28, 28, 1) and images.dtype == np.uint8
    assert len({image.tobytes() for image in images}) == 32
    assert images.max() == 255 and 0.03 < (images > 127).mean() < 0.3


@pytest.mark.parametrize("name", capsjax.pretrained_names())
def test_packaged_networks_say_what_they_said(name):
    described = capsjax.describe_pretrained(name)
    needed = {"data", "recipe", "command", "commit", "seed", "test_errors", "test_examples"}
    assert needed <= described.facts.keys() and "+changes" not in described.facts["commit"]
    model, params, _, preprocessing = capsjax.load_pretrained(name)
    texts = publish.probe(model, params, preprocessing), described.facts["probe"]
    now, then = (np.array([x.split(":") for x in text.split()], float) for text in texts)
    np.testing.assert_allclose(now, then, atol=2e-3)  # the class and the score of each image


def test_packaged_networks_are_small():
    folders = files.packaged().values()
    assert sum(p.stat().st_size for f in folders for p in f.iterdir()) <= MOST_BYTES


@pytest.mark.slow
@pytest.mark.parametrize("name", capsjax.pretrained_names())
def test_packaged_networks_make_the_errors_of_their_cards(name):
    """On all test images, where CAPSJAX_TEST_ARRAYS has them."""
    facts = capsjax.describe_pretrained(name).facts
    path = pathlib.Path(FOLDER, f"{pathlib.Path(facts['data']).stem}.npz")
    if not FOLDER or not path.exists():
        pytest.skip(f"there is no {path.name} in CAPSJAX_TEST_ARRAYS")
    with np.load(path) as found:
        images, labels = found["test_images"], found["test_labels"]
    images = images if images.ndim == 4 else images[..., None]
    model, params, _, preprocessing = capsjax.load_pretrained(name)
    apply = jax.jit(lambda params, x: model.apply(params, preprocessing(x)).scores.argmax(1))
    classes = capsjax.map_batches(lambda x, count: np.asarray(apply(params, x)), images, 128)
    assert len(labels) == facts["test_examples"]
    assert (classes != labels).sum() == facts["test_errors"]
