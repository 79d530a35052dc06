"""cifar10, smallnorb and svhn: published parameter counts, ensembles, arrays of one's own."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
import tensorflow_datasets as tfds
from helpers import ROOT, prepare_run, read_json, train
from tfds_builders import Tiny, offline, png, prepare  # noqa: F401  (offline: no network here)

from capsjax import functional
from experiments import cifar10, smallnorb, svhn
from experiments.analysis.saved_run import stored_config
from experiments.config import UserError, names_of, network_config, resolve
from experiments.data import batching, datasets
from experiments.tasks import figures, registry
from experiments.tasks.registry import find_program
from experiments.training import loop
from experiments.training.evaluate import make_evaluate
from experiments.training.setup import initial_state, training_inputs

# Parameters: section 7 of the paper, or what its authors' code makes, with the bias of s_j.
NETWORKS = {
    "cifar10": (cifar10.PROGRAM.defaults, (24, 24, 3), 10, 22_476_448),
    "smallnorb": (smallnorb.PROGRAM.defaults, (32, 32, 2), 5, 9_327_184),
    "svhn": (svhn.PROGRAM.defaults, (32, 32, 3), 10,
             (81 * 3 + 1) * 64 + (81 * 64 + 1) * 96 + 8 * 8 * 16 * 10 * 6 * 8 + 80),
}


@pytest.mark.parametrize("defaults, shape, classes, count", NETWORKS.values(), ids=NETWORKS)
def test_published_numbers_of_parameters(defaults, shape, classes, count):
    config = resolve(dataclasses.replace(defaults, routing_bias=True), defaults.dataset)
    network = network_config(config, shape, classes)
    assert network == network_config(config, network.image_shape, network.num_classes)
    shapes = jax.eval_shape(functional.create_model(network).init, jax.random.key(0))
    assert functional.count_parameters(shapes) == count


def test_networks_are_the_papers():
    network = network_config(resolve(cifar10.PROGRAM.defaults, "cifar10"), (24, 24, 3), 10)
    assert (network.routing, network.input_capsules, network.decoder) == ("leaky", 9216, None)
    assert network.primary_grid == (12, 12)
    network = network_config(resolve(smallnorb.PROGRAM.defaults, "smallnorb"), (32, 32, 2), 5)
    assert (network.routing, network.input_capsules) == ("dynamic", 2048)
    network = network_config(resolve(svhn.PROGRAM.defaults, "svhn_cropped"), (32, 32, 3), 10)
    assert (network.primary_pose, network.class_pose, network.decoder) == (6, 8, None)


def arrays(shape, classes, train=40, test=30):
    rng = np.random.default_rng(0)
    return {
        "train_images": rng.integers(0, 256, (train, *shape), np.uint8),
        "train_labels": np.arange(train) % classes,
        "test_images": rng.integers(0, 256, (test, *shape), np.uint8),
        "test_labels": np.arange(test) % classes,
    }


@pytest.fixture
def stored(tmp_path):
    def write(values, name="a.npz"):
        np.savez(tmp_path / name, **values)
        return str(tmp_path / name)

    return write


def short(program, path, tmp_path, **changes):
    return dataclasses.replace(
        registry.find_program(program).defaults, dataset=path, preset="tiny", steps=2, batch_size=8,
        num_devices=1, cache_dir="none", accelerator="cpu", workdir=str(tmp_path / "run"),
        **changes)


@pytest.mark.parametrize("program, raw, classes, shape, changes", [
    ("cifar10", (32, 32, 3), 10, (24, 24, 3), {}),
    ("cifar10", (28, 28), 10, (24, 24, 1), {"ensemble": 2}),
    pytest.param("cifar10", (32, 32, 3), 10, (24, 24, 3),
                 {"reconstruction": True, "parallel": "shard_map", "num_devices": 2},
                 marks=pytest.mark.slow),
    pytest.param("cifar10", (32, 32, 3), 10, (24, 24, 3), {"ensemble": 2, "model": "cnn"},
                 marks=pytest.mark.slow),
    ("smallnorb", (96, 96, 2), 5, (32, 32, 2), {}),
    pytest.param("smallnorb", (96, 96, 2), 5, (32, 32, 2), {"reconstruction": False},
                 marks=pytest.mark.slow),
    ("svhn", (32, 32, 3), 10, (32, 32, 3), {}),
])
def test_two_steps_on_arrays(program, raw, classes, shape, changes, stored, tmp_path):
    path = stored(arrays(raw, classes))
    config = short(program, path, tmp_path, **changes)
    summary = train(config)
    assert summary["program"] == program and summary["steps"] == 2
    assert summary["test_examples"] == 30 and np.isfinite(summary["test_loss"])
    assert summary["dataset"] == path and summary["dataset_source"].startswith("arrays ")
    setup = prepare_run(config)
    assert setup.pipeline.shape == shape == setup.model_config.image_shape
    assert setup.dataset.num_classes == classes
    count = changes.get("ensemble", 1)
    assert summary.get("ensemble", 1) == count
    one = functional.count_parameters(jax.eval_shape(
        functional.create_model(setup.model_config).init, jax.random.key(0)))
    assert summary["parameters"] == count * one
    if count == 1 and program != "svhn":
        assert summary["member_test_error"] == summary["test_error"]
    opened = stored_config(tmp_path / "run")
    defaults = find_program(program).defaults
    here = {name: getattr(defaults, name) for name in names_of(defaults, "local")}
    assert opened == dataclasses.replace(setup.config, **here)
    assert opened.default_workdir().startswith(f"runs/{program}-a-")


def test_crops_of_a_smaller_image(tmp_path):
    config = short("smallnorb", "digits", tmp_path)
    with pytest.raises(UserError, match="14x14 pixels are too few for crops of 32x32"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_stereo_pairs_are_drawn_side_by_side():
    pair = np.arange(24).reshape(1, 3, 4, 2)
    want = np.concatenate([pair[..., 0], pair[..., 1]], axis=2)
    np.testing.assert_array_equal(figures.side_by_side(pair)[..., 0], want)
    np.testing.assert_array_equal(figures.side_by_side(pair[..., :1]), pair[..., :1])


# Ensembles


def members(made):
    """Parameters of each network after one step of plain descent."""
    made = made._replace(optimizer=optax.sgd(1.0))
    state = initial_state(made)
    source, key = training_inputs(made)
    order = batching.epoch_orders(key, 0, len(made.dataset.train_labels))
    before = jax.device_get(state.params)
    after, sums = loop.make_chunk(made)(state, source, order, key, 1)
    return before, jax.device_get(after.params), jax.device_get(sums)


def test_each_network_of_an_ensemble_is_trained_as_if_alone(stored, tmp_path):
    path = stored(arrays((28, 28), 10))
    made = prepare_run(short("cifar10", path, tmp_path, ensemble=3))
    before, after, sums = members(made)
    single = prepare_run(short("cifar10", path, tmp_path))
    losses = []
    for n in range(3):
        start = jax.tree.map(lambda x, n=n: x[n], before)
        alone = single._replace(model=single.model._replace(init=lambda key, start=start: start))
        _, want, alone_sums = members(alone)
        losses.append(alone_sums["loss"])
        for got, exact, first in zip(jax.tree.leaves(after), jax.tree.leaves(want),
                                     jax.tree.leaves(start), strict=True):
            moved = abs(exact - first).max()
            np.testing.assert_allclose(got[n], exact, rtol=0, atol=1e-4 * moved + 1e-7)
    assert len(set(np.round(losses, 6))) == 3
    assert sums["loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_an_ensemble_averages_scores(stored, tmp_path):
    made = prepare_run(short("cifar10", stored(arrays((28, 28), 10)), tmp_path, ensemble=3))
    params = jax.device_get(initial_state(made).params)
    pixels, labels = made.pipeline.held_out("test")
    values = make_evaluate(made)(params, pixels, labels)
    alone = functional.create_model(made.model_config)
    x = jax.vmap(made.pipeline.input)(pixels)
    scores = np.stack([
        np.asarray(jax.jit(alone.apply)(jax.tree.map(lambda p, n=n: p[n], params), x).scores)
        for n in range(3)])
    right = scores.argmax(2) == labels
    np.testing.assert_array_equal(values["accuracy"], scores.mean(0).argmax(1) == labels)
    np.testing.assert_allclose(values["member_accuracy"], right.mean(0), atol=1e-6)


@pytest.mark.parametrize("changes, flag", [
    ({"diagnostics": True}, "--diagnostics"), ({"reconstruction": True}, "--reconstruction"),
    ({"routing": "frozen"}, "--routing=frozen"),
])
def test_flags_of_a_single_network(changes, flag, stored, tmp_path):
    config = short("cifar10", stored(arrays((28, 28), 10)), tmp_path, ensemble=2, **changes)
    with pytest.raises(UserError, match=f"{flag} needs a single network, not --ensemble=2"):
        train(config)
    assert not (tmp_path / "run").exists()


# Arrays of one's own


def test_arrays_as_they_are(stored):
    given = arrays((5, 4, 3), 3)
    path = stored(given | {"class_names": np.array(["ant", "bee", "cow", "dog"])})
    got = datasets.load(path, cache_dir="none", validation_fraction=0.25)
    assert got.class_names == ("ant", "bee", "cow", "dog") and got.name == path
    np.testing.assert_array_equal(got.test_images, given["test_images"])
    assert len(got.validation_labels) == 10 and got.train_labels.dtype == np.int32
    both = np.concatenate([got.train_images, got.validation_images])
    assert sorted(map(bytes, both)) == sorted(map(bytes, given["train_images"]))


def test_grey_arrays_and_classes_without_names(stored):
    got = datasets.load(stored(arrays((5, 4), 3)), cache_dir="none")
    assert got.image_shape == (5, 4, 1) and got.class_names == ("0", "1", "2")
    other = arrays((5, 4), 3)
    other["test_images"][0, 0, 0] ^= 1
    sources = [got.source, datasets.load(stored(other), cache_dir="none").source]
    assert sources[0].split(" from ")[1] == sources[1].split(" from ")[1]
    assert sources[0] != sources[1]


@pytest.mark.parametrize("change, message", [
    (lambda a: a.pop("test_labels"), "no array test_labels; there are train_images, train_labels"),
    (lambda a: a.update(train_images=a["train_images"] / 255), "train_images are float64, not "),
    (lambda a: a.update(train_labels=a["train_labels"] / 1), "train_labels are float64, not "),
    (lambda a: a.update(train_labels=a["train_labels"] - 1), "train labels that are no class"),
    (lambda a: a.update(train_labels=a["train_labels"][1:]), "40 train images and 39 labels"),
    (lambda a: a.update(test_images=a["test_images"][:, 1:]), "train and test images differ in"),
    (lambda a: a.update(class_names=np.array(["x"])), "train labels that are no class"),
    (lambda a: a.update(class_names=np.array([{}], object)), "allow_pickle=False"),
    (lambda a: a.update(test_images=a["test_images"][:0], test_labels=a["test_labels"][:0]),
     "0 test images and 0 labels"),
    (lambda a: a.update(train_images=a["train_images"][0]), "5 train images and 40 labels"),
    (dict.clear, "no array train_images; there are none"),
])
def test_wrong_arrays(change, message, stored):
    values = arrays((5, 4, 3), 3)
    change(values)
    path = stored(values)
    with pytest.raises(UserError) as error:
        datasets.load(path, cache_dir="none")
    text = str(error.value)
    assert text.startswith(f"--dataset={path}: ") and message in text and "\n" not in text


def test_a_file_that_is_not_there_or_no_npz(tmp_path):
    with pytest.raises(UserError, match="x.npz: No such file"):
        datasets.load(str(tmp_path / "x.npz"), cache_dir="none")
    (tmp_path / "y.npz").write_text("hello")
    with pytest.raises(UserError, match="y.npz: "):
        datasets.load(str(tmp_path / "y.npz"), cache_dir="none")


class TinyStereo(Tiny):
    """Two eyes and a category, as smallnorb has them."""

    SHAPE, SIZES = (6, 5, 1), {"train": 12, "test": 4}

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=self.SHAPE),
            "image2": tfds.features.Image(shape=self.SHAPE),
            "label_azimuth": tfds.features.ClassLabel(num_classes=9),
            "label_category": tfds.features.ClassLabel(names=self.NAMES),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _generate_examples(self, split):
        for n in range(self.SIZES[split]):
            left = np.full(self.SHAPE, n, np.uint8)
            yield n, {"image": png(left), "image2": png(left + 100), "label_azimuth": n % 9,
                      "label_category": n % 3}


def test_stereo_pairs_become_two_channels(tmp_path):
    prepare(tmp_path, [TinyStereo])
    got = datasets.load("tiny_stereo", data_dir=tmp_path, cache_dir=tmp_path / "cache",
                    validation_fraction=0)
    assert got.image_shape == (6, 5, 2) and got.class_names == ("ant", "bee", "cow")
    np.testing.assert_array_equal(got.train_labels, got.train_images[:, 0, 0, 0] % 3)
    left, right = got.train_images[..., 0], got.train_images[..., 1]
    np.testing.assert_array_equal(right, left + 100)
    assert sorted(left[:, 0, 0]) == list(range(12))


@pytest.mark.slow
@pytest.mark.parametrize("program", ["cifar10", "svhn", "multimnist"])
def test_from_the_command_line(program, stored, tmp_path):
    path = stored(arrays((32, 32) if program == "multimnist" else (32, 32, 3), 10))
    command = [sys.executable, "-m", f"experiments.{program}", f"--dataset={path}",
               "--preset=tiny", "--steps=1", "--batch_size=8", "--accelerator=cpu",
               f"--workdir={tmp_path / 'run'}", f"--cache_dir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert read_json(tmp_path / "run" / "summary.json")["program"] == program
