"""The task affnist: its examples, early stopping, response curves, and whole runs."""

import dataclasses
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from affnist_files import digits, write
from helpers import load_digits, metrics_rows, read_json, train

from experiments import affnist
from experiments.config import UserError
from experiments.data import affnist_images, datasets
from experiments.data.affine import Affine, warp
from experiments.files.bits import unpack
from experiments.tasks import affnist as affnist_task
from experiments.tasks import figures, response_curves
from experiments.training import evaluate as evaluate_module

# What the program adds to the loop


def dataset(n=30):
    images, labels = digits(n), np.arange(n, dtype=np.int32) % 10
    return datasets.Dataset("some", "nowhere", *(images, labels) * 3, tuple("0123456789"))


def test_canvas_pipeline():
    """Training positions are random, held-out positions fixed, and digits to predict centred."""
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


def test_digits_anywhere_on_the_canvas():
    some = dataset()
    config = dataclasses.replace(affnist.PROGRAM.defaults, placement="canvas")
    stream = affnist_task.canvas_pipeline(config, some)
    source = jax.tree.map(jnp.asarray, stream.source)
    keys = jax.random.split(jax.random.key(0), 30)
    images, _ = jax.vmap(stream.example, (0, None, 0))(keys, source, jnp.arange(30))
    held_out, _ = stream.held_out("test")
    images = np.round(255 * images)
    for placed, given in ((images, some.train_images), (held_out, some.test_images)):
        totals = given.astype(int).sum(axis=(1, 2, 3))
        np.testing.assert_array_equal(placed.astype(int).sum(axis=(1, 2, 3)), totals)
        distances = affnist_images.distances_from_centre(placed)
        assert distances.max() > 8 and distances.min() < 6


@pytest.mark.parametrize(
    "changes, problem",
    [
        (
            {"placement": "canvas", "augmentation": "affine"},
            "--placement=canvas needs --augmentation=auto, not affine",
        ),
        ({"placement": "canvas", "max_shift": 3}, "--max_shift=3 applies to --placement=shift"),
        ({"affnist_dir": "x"}, "--affnist_dir requires MNIST, not --dataset=some"),
    ],
)
def test_contradictory_flags_are_refused(changes, problem):
    small = dataset()._replace(class_names=("0", "1"))
    with pytest.raises(UserError, match=problem):
        affnist_task.canvas_pipeline(
            dataclasses.replace(affnist.PROGRAM.defaults, **changes), small
        )


def test_an_early_end_needs_validation_data():
    """Whatever --validation_fraction: a file may have its own, or the fraction leave none."""
    few, defaults = dataset(), affnist.PROGRAM.defaults
    without = dataclasses.replace(defaults, validation_fraction=0.0)
    assert len(few.validation_labels)
    affnist_task.canvas_pipeline(without, few)
    none = few._replace(validation_images=few.test_images[:0], validation_labels=np.int32([]))
    with pytest.raises(UserError, match="--stop_at=99.23 needs validation data"):
        affnist_task.canvas_pipeline(defaults, none)
    affnist_task.canvas_pipeline(dataclasses.replace(defaults, stop_at=0.0), none)


@pytest.mark.parametrize(
    "changes, shifts",
    [
        ({}, (-6, 6)),
        ({"max_shift": 3}, (-3, 3)),
        ({"placement": "canvas"}, None),
        ({"augmentation": "affine"}, None),
    ],
    ids=str,
)
def test_the_figure_shades_the_shifts_of_training(changes, shifts):
    config = dataclasses.replace(affnist.PROGRAM.defaults, workdir="here", **changes)
    summary = {"model": "cnn", "routing": None, "test_error": 1.0, "affnist_error": 2.0}
    summary |= {"affnist": "affNIST", "response": {}, "response_images": 3, "dataset": "mnist"}
    ((_, _, (_, ranges, _)),) = affnist_task.response_figure(
        types.SimpleNamespace(config=config), summary
    )
    assert ranges.get("shift_x") == ranges.get("shift_y") == shifts
    assert ranges["rotation"] == affnist_images.TRANSFORMATION_RANGES["rotation"]


def test_should_stop():
    def ends(*errors, stop_at=99.23):
        rows = [{"loss": 1.0}, *({"validation_error": e} for e in errors), {"loss": 0.5}]
        return affnist_task.should_stop(
            dataclasses.replace(affnist.PROGRAM.defaults, stop_at=stop_at), rows
        )

    assert not ends() and not ends(0.78) and ends(0.77) and ends(2.0, 0.5) and not ends(0.5, 2.0)
    assert ends(100 * (1 - float(np.float32(0.9923))))
    assert not ends(0.0, stop_at=0.0) and ends(0.0, stop_at=100.0)


def test_response_curves_apply_their_transformations(monkeypatch):
    """Uses a classifier that is right about the images as they are expected here."""
    monkeypatch.setattr(response_curves, "CURVES", {"scale": (0.5, 1, 1.5), "shift_x": (-2, 0, 2)})
    images, labels = affnist_images.pad_to_canvas(digits(4)), np.arange(4)
    wanted = [
        *(Affine(scale_x=s, scale_y=s) for s in (0.5, 1.0, 1.5)),
        *(Affine(shift_x=x) for x in (-2.0, 0.0, 2.0)),
    ]
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
    """Provides 96 training digits, 40 each for validation and test, and few curves."""
    whole = load_digits()
    ends = (96, 96, 40, 40, 40, 40)
    parts = (part[:n] for part, n in zip(whole[2:8], ends, strict=True))
    some = datasets.Dataset(*whole[:2], *parts, *whole[8:])
    monkeypatch.setattr(datasets, "load", lambda *_, **__: some)
    monkeypatch.setattr(evaluate_module, "BATCH", 40)
    monkeypatch.setattr(figures, "of_finished_run", lambda *_: [])  # which others test
    few = {name: values[:2] for name, values in response_curves.CURVES.items()}
    monkeypatch.setattr(response_curves, "CURVES", few)


@pytest.mark.slow
def test_program(quick, tmp_path, capsys):
    """The run stops early, stays finished, continues without a target, and reads official files."""
    config = dataclasses.replace(
        affnist.PROGRAM.defaults,
        dataset="digits",
        preset="tiny",
        cache_dir="none",
        accelerator="cpu",
        epochs=6,
        batch_size=96,
        log_every=3,
        stop_at=0.1,
        curve_images=20,
        num_devices=1,
        workdir=str(tmp_path / "run"),
    )

    def summary_of(**changes):
        train(dataclasses.replace(config, **changes))
        return read_json(tmp_path / "run" / "summary.json")

    first = summary_of()
    assert (first["steps"], first["stopped_at"], first["stop_at"]) == (3, 3, 0.1)
    assert first["validation_examples"] == 40 and first["test_examples"] == 40
    assert first["affnist"] == "synthetic affNIST" and first["affnist_examples"] == 40
    assert first["affnist_error"] == 100 * first["affnist_errors"] / 40
    assert (~unpack(first["affnist_correct"], 40)).sum() == first["affnist_errors"]
    bins = first["affnist_error_by_distance"]
    assert sum(row["images"] for row in bins) == 40
    errors = sum(row["images"] * row["error"] for row in bins) / 100
    assert errors == pytest.approx(first["affnist_errors"], abs=1e-3)
    assert first["response_images"] == 20 and set(first["response"]) == {
        "rotation",
        "shear",
        "scale",
        "shift_x",
        "shift_y",
    }
    assert "--curve_images" in first["command"] and "--preset=tiny" in first["command"]
    out = capsys.readouterr().out
    assert f"synthetic affNIST: {first['affnist_error']:.2f}% error" in out
    assert "by distance from the middle: " in out
    assert str(tmp_path / "run" / "figures" / "response.png") in out
    again = summary_of()
    assert again["steps"] == 3 and again["affnist_errors"] == first["affnist_errors"]
    write(tmp_path / "official" / "test_batches" / "1.mat")
    last = summary_of(stop_at=0.0, affnist_dir=str(tmp_path / "official"))
    assert (last["steps"], last["stopped_at"]) == (6, None)
    rows = metrics_rows(tmp_path / "run")
    # Every step is an epoch here, and not worth an evaluation.
    assert [row["step"] for row in rows if "validation_error" in row] == [3, 6]
    assert last["affnist"] == "official affNIST" and last["affnist_examples"] == 5
    assert "official" not in last["command"]


@pytest.mark.parametrize(
    "there, problem",
    [
        (None, "no summary.json there"),
        ("{", "is not understood"),
        ('{"program": "mnist"}', "a run of mnist"),
        ('{"program": "affnist"}', "'response'"),
    ],
)
def test_invalid_run_to_compare_with_is_refused(there, problem, tmp_path):
    if there:
        (tmp_path / "summary.json").write_text(there)
    config = dataclasses.replace(
        affnist.PROGRAM.defaults, dataset="digits", cache_dir="none", compare=str(tmp_path)
    )
    with pytest.raises(UserError, match=re.escape(problem)):
        train(config)
