"""Synthetic affNIST, the reader of the official files, and the program."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
import scipy.io
from helpers import train

from experiments import affnist, plots
from experiments.config import UserError
from experiments.data import affnist_images, datasets
from experiments.data.affine import Affine, ink_bounds, warp
from experiments.plots.response_curves import _responses_figure
from experiments.tasks import affnist as affnist_task
from experiments.tasks import figures, response_curves
from experiments.training import evaluate as evaluate_module
from experiments.training.devices import cache_folder

RNG = np.random.default_rng(0)
draw = jax.jit(jax.vmap(affnist_images.random_transformation))


def digits(n=40, side=28):
    """Strokes of noise in the middle 20x20 pixels, as MNIST's."""
    images = np.zeros((n, side, side, 1), np.uint8)
    images[:, 4:-4, 4:-4] = RNG.integers(0, 256, size=(n, side - 8, side - 8, 1))
    return images * (RNG.uniform(size=images.shape) < 0.3)


def test_canvas():
    images = digits()
    canvases = affnist_images.pad_to_canvas(images)
    assert canvases.shape == (40, 40, 40, 1) and canvases.dtype == np.uint8
    np.testing.assert_array_equal(canvases[:, 6:-6, 6:-6], images)
    assert canvases.sum(dtype=int) == images.sum(dtype=int)


def test_translated_images_are_moved_by_whole_pixels_and_lose_nothing():
    images = RNG.integers(1, 256, size=(affnist_images.BATCH_SIZE, 28, 28, 1)).astype(np.uint8)
    moved = affnist_images.translate_images(affnist_images.pad_to_canvas(images))
    places = set()
    for image, canvas in zip(images, moved, strict=True):
        top, left = (int(np.flatnonzero(canvas[..., 0].any(axis=a))[0]) for a in (1, 0))
        np.testing.assert_array_equal(canvas[top:top + 28, left:left + 28], image)
        places.add((top, left))
    assert {top for top, _ in places} == {left for _, left in places} == set(range(13))


def test_transformations_are_within_their_ranges_and_fill_them():
    keys = jax.random.split(jax.random.key(0), 500)
    images = jnp.asarray(affnist_images.pad_to_canvas(digits(500)), jnp.float32)
    drawn = draw(keys, images)
    ranges = {"rotation": 20, "shear": 0.2, "scale_x": 0.2, "scale_y": 0.2}
    values = []
    for name, most in ranges.items():
        value = np.asarray(getattr(drawn, name)) - (1 if "scale" in name else 0)
        assert np.all(abs(value) <= most * 1.001) and value.max() > 0.97 * most
        assert value.std() == pytest.approx(most / np.sqrt(3), rel=0.08)  # uniform
        values.append(value)
    shifts = np.array([drawn.shift_x, drawn.shift_y])
    # 20x20 pixels of ink have 10 pixels of play on each side, less what is drawn larger.
    assert 8 < shifts.max() <= 13 and -13 <= shifts.min() < -8
    correlations = np.corrcoef([*values, *shifts]) - np.eye(6)
    assert abs(correlations).max() < 0.16  # independent: 3.5 / sqrt(500)


def test_no_ink_leaves_the_canvas():
    """On a canvas with a wide margin the same transformation draws the same ink."""
    canvases = affnist_images.pad_to_canvas(digits(500)).astype(np.float32)
    drawn = draw(jax.random.split(jax.random.key(1), 500), jnp.asarray(canvases))
    wide = np.pad(canvases, ((0, 0), (20, 20), (20, 20), (0, 0)))
    inside, all_of_it = (np.asarray(jax.jit(jax.vmap(warp))(jnp.asarray(a), drawn))
                         for a in (canvases, wide))
    np.testing.assert_allclose(all_of_it[:, 20:-20, 20:-20], inside, atol=1e-2)
    np.testing.assert_allclose(all_of_it.sum(axis=(1, 2)), inside.sum(axis=(1, 2)), rtol=1e-5)


@pytest.mark.parametrize("value", [255.0, 0.0])
def test_what_is_too_large_or_empty_stays_in_the_middle(value):
    images = jnp.full((500, 40, 40, 1), value, jnp.float32)
    drawn = draw(jax.random.split(jax.random.key(3), 500), images)
    low, high = (np.asarray(a) for a in jax.jit(jax.vmap(ink_bounds))(images, drawn))
    shifts = np.stack([drawn.shift_x, drawn.shift_y], axis=1)
    fits = (high - low <= 41) & (value > 0)
    assert abs(shifts[~fits]).max() < 1e-5
    assert fits.mean() == (pytest.approx(0.15, abs=0.05) if value else 0)
    assert np.all(shifts[fits] != 0)


def test_synthetic_affnist_depends_on_the_image_and_its_number_alone():
    canvases = affnist_images.pad_to_canvas(digits(3))
    once, again = (affnist_images.transform_images(canvases) for _ in range(2))
    assert once.shape == canvases.shape and once.dtype == np.uint8
    np.testing.assert_array_equal(once, again)
    np.testing.assert_array_equal(affnist_images.transform_images(canvases[[0, 1, 1]])[:2], once[:2])
    same = affnist_images.transform_images(np.repeat(canvases[:1], 3, axis=0))
    assert (same[0] != same[1]).any() and (same[1] != same[2]).any()


# The official files


def write(path, images=None, labels=None, **fields):
    images = RNG.integers(0, 256, size=(5, 40, 40)).astype(np.uint8) if images is None else images
    labels = np.array([[3, 1, 4, 1, 5]], np.uint8) if labels is None else labels
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = images.reshape(len(images), -1).T  # as in the files: a column an image
    record = {"affine": np.zeros((6, 5)), "image": columns, "label_int": labels} | fields
    scipy.io.savemat(path, {"affNISTdata": record})
    return images, labels.reshape(-1)


@pytest.mark.parametrize("place", ["test.mat", "1.mat", "test_batches/1.mat",
                                   "transformed/test_batches/1.mat"])
def test_official_files_are_found(place, tmp_path):
    images, labels = write(tmp_path / place)
    for where in (tmp_path, tmp_path / place):
        got = affnist_images.read_official_files(str(where))
        np.testing.assert_array_equal(got[0], images[..., None])
        np.testing.assert_array_equal(got[1], labels)
        assert got[0].dtype == np.uint8 and got[1].dtype == np.int32


def test_batches_are_joined_and_doubles_accepted(tmp_path):
    first, labels = write(tmp_path / "test_batches" / "1.mat")
    write(tmp_path / "test_batches" / "2.mat", images=first[::-1].astype(np.float64),
          labels=labels[None].astype(np.float64))
    images, both = affnist_images.read_official_files(str(tmp_path))
    np.testing.assert_array_equal(images[..., 0], np.concatenate([first, first[::-1]]))
    np.testing.assert_array_equal(both, np.tile(labels, 2))


IMAGES = np.zeros((5, 40, 40))
WRONG = {
    "28x28 images": dict(images=np.zeros((5, 28, 28), np.uint8)),
    "too few labels": dict(labels=np.array([[1, 2]])),
    "no images": dict(image=np.zeros((1600, 0)), labels=np.zeros((1, 0))),
    "a label ten": dict(labels=np.array([[10, 1, 2, 3, 4]])),
    "pixels between": dict(images=IMAGES + 0.5),
    "no number": dict(images=IMAGES + np.nan),
    "negative pixels": dict(images=IMAGES - 1),
    "cells": dict(label_int=np.array([1, "a", 2, 3, 4], dtype=object)),
    "text": dict(image="an image"),
    "complex": dict(images=IMAGES + 1j),
}


@pytest.mark.parametrize("name", WRONG)
def test_other_contents_are_refused(name, tmp_path):
    write(tmp_path / "test.mat", **WRONG[name])
    with pytest.raises(UserError, match="test.mat is not a file of affNIST: .") as refused:
        affnist_images.read_official_files(str(tmp_path))
    assert "\n" not in str(refused.value)


def test_missing_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        affnist_images.read_official_files(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="neither test.mat nor"):
        affnist_images.read_official_files(str(tmp_path))
    path = tmp_path / "test.mat"
    write(path)
    whole = path.read_bytes()
    hdf5 = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400)
    for damaged in (b"", b"not MATLAB", whole[:300], whole[:-2000], hdf5, bytes(500)):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="test.mat is not a file of affNIST: .") as refused:
            affnist_images.read_official_files(str(path))
        assert "\n" not in str(refused.value)
    for other in ({"x": 1}, {"affNISTdata": np.eye(3)}, {"affNISTdata": {"image": 1}}):
        scipy.io.savemat(path, other)
        with pytest.raises(UserError, match="contains no affNISTdata|no image and label_int"):
            affnist_images.read_official_files(str(path))


# What the program adds to the loop


def dataset(n=30):
    images, labels = digits(n), np.arange(n, dtype=np.int32) % 10
    return datasets.Dataset("some", "nowhere", *(images, labels) * 3, tuple("0123456789"))


def test_stream():
    """Trained on anywhere on the canvas; held out at places that stay; digits in the middle."""
    some = dataset()
    stream = affnist_task.canvas_pipeline(affnist.PROGRAM.defaults, some)
    assert stream.shape == (40, 40, 1)
    keys = jax.random.split(jax.random.key(0), 30)
    source = jax.tree.map(jnp.asarray, stream.source)
    images, labels = jax.vmap(stream.example, (0, None, 0))(keys, source, jnp.arange(30))
    np.testing.assert_array_equal(labels, some.train_labels)
    totals = some.train_images.sum(axis=(1, 2, 3)) / 255
    np.testing.assert_allclose(images.sum(axis=(1, 2, 3)), totals, rtol=1e-5)
    canvases = affnist_images.pad_to_canvas(some.test_images)
    assert sum(np.array_equal(255 * a, b) for a, b in zip(images, canvases, strict=True)) < 5
    for split in ("validation", "test"):
        moved, _ = stream.held_out(split)
        np.testing.assert_array_equal(moved, affnist_images.translate_images(canvases))
        assert (moved != canvases).any()
    for pixels in (canvases[0], some.test_images[0]):
        np.testing.assert_allclose(255 * stream.input(pixels), canvases[0], rtol=1e-6)


@pytest.mark.parametrize("changes, problem", [
    ({"validation_fraction": 0.0}, "--stop_at=99.23 needs a --validation_fraction"),
    ({"affnist_dir": "x"}, "--affnist_dir goes with MNIST, not with --dataset=some"),
])
def test_flags_that_contradict(changes, problem):
    small = dataset()._replace(class_names=("0", "1"))
    with pytest.raises(UserError, match=problem):
        affnist_task.canvas_pipeline(dataclasses.replace(affnist.PROGRAM.defaults, **changes), small)


def test_enough():
    def ends(*errors, stop_at=99.23):
        rows = [{"loss": 1.0}, *({"validation_error": e} for e in errors), {"loss": 0.5}]
        return affnist_task.should_stop(dataclasses.replace(affnist.PROGRAM.defaults, stop_at=stop_at), rows)

    assert not ends() and not ends(0.78) and ends(0.77) and ends(2.0, 0.5) and not ends(0.5, 2.0)
    assert ends(100 * (1 - float(np.float32(0.9923))))
    assert not ends(0.0, stop_at=0.0) and ends(0.0, stop_at=100.0)


def test_response_curves_transform_as_they_say(monkeypatch):
    """A classifier that is right about images that are as they were drawn here."""
    monkeypatch.setattr(response_curves, "CURVES", {"scale": (0.5, 1, 1.5), "shift_x": (-2, 0, 2)})
    images, labels = affnist_images.pad_to_canvas(digits(4)), np.arange(4)
    wanted = [*(Affine(scale_x=s, scale_y=s) for s in (0.5, 1.0, 1.5)),
              *(Affine(shift_x=x) for x in (-2.0, 0.0, 2.0))]
    seen, exactly = [], jax.jit(warp)

    def evaluate(pixels, given):
        assert given is labels and pixels.dtype == np.uint8
        for image, pixel in zip(images, pixels, strict=True):
            exact = exactly(jnp.asarray(image, jnp.float32), wanted[len(seen)])
            np.testing.assert_allclose(pixel, exact, atol=0.502)
        seen.append(len(seen) / 8)
        return {"accuracy": np.array([1, 0, 0, 0]) if seen[-1] else np.ones(4)}

    found = response_curves.curves(evaluate, images, labels)
    assert found == {
        "scale": {"values": [0.5, 1, 1.5], "accuracy": [100.0, 25.0, 25.0]},
        "shift_x": {"values": [-2, 0, 2], "accuracy": [25.0, 25.0, 25.0]},
    }
    assert len(seen) == 6


@pytest.fixture
def quick(monkeypatch):
    """96 digits to train on, 40 each for validation and test, in batches of 40; few curves."""
    whole = datasets.load("digits", cache_dir=cache_folder("none"))
    ends = (96, 96, 40, 40, 40, 40)
    parts = (part[:n] for part, n in zip(whole[2:8], ends, strict=True))
    some = datasets.Dataset(*whole[:2], *parts, *whole[8:])
    monkeypatch.setattr(datasets, "load", lambda *_, **__: some)
    monkeypatch.setattr(evaluate_module, "BATCH", 40)
    monkeypatch.setattr(figures, "of_finished_run", lambda *_: [])  # which others test
    few = {name: values[:2] for name, values in response_curves.CURVES.items()}
    monkeypatch.setattr(response_curves, "CURVES", few)


def test_program(quick, tmp_path, capsys):
    """It stops early and stays so; goes on where nothing is to be reached; takes real files."""
    config = dataclasses.replace(
        affnist.PROGRAM.defaults, dataset="digits", preset="tiny", cache_dir="none", accelerator="cpu",
        epochs=6, batch_size=96, log_every=3, stop_at=0.1, curve_images=20, num_devices=1,
        workdir=str(tmp_path / "run"))

    def summary_of(**changes):
        train(dataclasses.replace(config, **changes))
        return json.loads((tmp_path / "run" / "summary.json").read_text())

    first = summary_of()
    assert (first["steps"], first["stopped_at"], first["stop_at"]) == (3, 3, 0.1)
    assert first["validation_examples"] == 40 and first["test_examples"] == 40
    assert first["affnist"] == "synthetic affNIST" and first["affnist_examples"] == 40
    assert first["affnist_error"] == 100 * first["affnist_errors"] / 40
    assert first["response_images"] == 20 and set(first["response"]) == {
        "rotation", "shear", "scale", "shift_x", "shift_y"}
    assert "--curve_images" in first["command"] and "--preset=tiny" in first["command"]
    out = capsys.readouterr().out
    assert f"synthetic affNIST: {first['affnist_error']:.2f}% error" in out
    assert str(tmp_path / "run" / "figures" / "response.png") in out
    again = summary_of()
    assert again["steps"] == 3 and again["affnist_errors"] == first["affnist_errors"]
    write(tmp_path / "official" / "test_batches" / "1.mat")
    last = summary_of(stop_at=0.0, affnist_dir=str(tmp_path / "official"))
    assert (last["steps"], last["stopped_at"]) == (6, None)
    rows = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    # Every step is an epoch here, and not worth an evaluation.
    assert [row["step"] for row in rows if "validation_error" in row] == [3, 6]
    assert last["affnist"] == "official affNIST" and last["affnist_examples"] == 5
    assert "official" not in last["command"]


@pytest.mark.parametrize("there, problem", [
    (None, "no summary.json there"),
    ("{", "is not understood"),
    ('{"program": "mnist"}', "a run of mnist"),
    ('{"program": "affnist"}', "'response'"),
])
def test_another_run_that_is_none(there, problem, tmp_path):
    if there:
        (tmp_path / "summary.json").write_text(there)
    config = dataclasses.replace(affnist.PROGRAM.defaults, dataset="digits", cache_dir="none", compare=str(tmp_path))
    with pytest.raises(UserError, match=re.escape(problem)):
        train(config)


# Pictures


def summary(model="capsnet", name="synthetic affNIST", **changes):
    curves = {key: {"values": list(values), "accuracy": [100 - abs(v) for v in values]}
              for key, values in response_curves.CURVES.items()}
    return {"model": model, "routing": "dynamic" if model == "capsnet" else None,
            "test_error": 0.77, "affnist_error": 21.0, "affnist": name, "dataset": "mnist",
            "response_images": 1000, "response": curves} | changes


def test_picture_of_responses(tmp_path):
    both = {"a": summary(), "b": summary("cnn", "official affNIST", affnist_error=34.0)}
    curves, ranges, title = response_curves.plot_arguments(both)
    assert list(curves) == ["capsnet, dynamic: 99.23% translated, 79.00% synthetic affNIST",
                            "cnn: 99.23% translated, 66.00% official affNIST"]
    assert title == "mnist: accuracy under one transformation, 1,000 test digits"
    assert ranges["scale"] == (0.8, 1.2) and ranges["shift_x"] == (-6, 6)
    plots.plot_responses(tmp_path / "r.png", curves, ranges, title)
    assert matplotlib.image.imread(tmp_path / "r.png").shape[1] == 1050
    figure = _responses_figure(curves, ranges, title)
    rotation = figure.axes[1]
    assert rotation.get_xlabel() == "" and rotation.get_title(loc="left") == "rotation, degrees"
    np.testing.assert_array_equal(rotation.lines[0].get_ydata(),
                                  curves[list(curves)[0]]["rotation"]["accuracy"])
    twice, *_ = response_curves.plot_arguments({"a": summary(), "b": summary()})
    assert len(twice) == 2 and list(twice)[1].endswith(", b")
