"""Runs that read their images in training: the same as with all of them on the device."""

import dataclasses
import pathlib
import sys

import jax
import numpy as np
import pytest
from helpers import QUICK, keep_rounding_small, metrics_rows, prepare_run, train
from tfds_builders import png

from capsjax.models import PRESETS
from experiments.config import UserError
from experiments.data import batching
from experiments.data.image_folder import InFiles
from experiments.data.read_ahead import read_ahead
from experiments.data.stored_images import InArray, InPart, StoredImages
from experiments.tasks import figures
from experiments.tasks.registry import find_program
from experiments.training import (
    loop,
    processes,
    selection,
    training_data,
    vmapped_loop,
    windows,
)
from experiments.training.banner import banner
from experiments.training.checkpoints import Checkpoints
from experiments.training.setup import initial_state, random_keys, training_inputs

pytest.importorskip("grain")
# Epochs of three steps, two of which are a block; chunks end at 4, 6 and 7.
SHORT = dataclasses.replace(
    QUICK,
    model="cnn",
    preset="mnist_small",
    steps=7,
    log_every=4,
    train_examples=50,
    validation_fraction=0.05,
    sampler="balanced",
)


@pytest.fixture(scope="module", autouse=True)
def small_windows():
    """A window holds two steps, a chunk four; no figures are drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "of_finished_run", lambda *_: [])
        patch.setattr(batching, "WINDOW_BYTES", 2 * 16 * 28 * 28)
        keep_rounding_small(patch)
        yield


def test_each_process_reads_its_part_of_a_window(monkeypatch):
    """The parts of two processes together are the window of one, and no row is read twice."""
    setup = prepare_run(dataclasses.replace(SHORT, input="grain"))
    rows, asked = np.random.default_rng(0).permutation(48).reshape(3, 16), []

    def recorded(images, labels, rows, workers):
        asked.append(rows)
        return read_ahead(images, labels, rows, workers)

    monkeypatch.setattr(windows, "read_ahead", recorded)
    whole = windows.make_next_window(setup, rows, 0)(2)
    monkeypatch.setattr(processes, "count", lambda: 2)
    parts = []
    for own in np.split(np.arange(16), 2):
        monkeypatch.setattr(windows, "own_rows", lambda *_, own=own: own)
        parts.append(windows.make_next_window(setup, rows, 0)(2))
    np.testing.assert_array_equal(np.concatenate(asked[1:], axis=1), rows)
    for part in parts:
        assert (part.first, part.count) == (whole.first, whole.count) == (0, 2)
    for name in ("images", "labels"):
        one, first, second = (np.asarray(getattr(w.source, name)) for w in (whole, *parts))
        np.testing.assert_array_equal(np.concatenate([first[:16], second[16:]]), one)
        assert not first[16:].any() and not second[:16].any()
    order = windows.orders_in_window(setup)[0]
    np.testing.assert_array_equal(
        np.asarray(whole.source.images)[order], setup.dataset.train_images[rows[:2].ravel()]
    )


def test_each_process_reads_its_places_of_held_out_batches():
    images = np.random.default_rng(0).integers(1, 256, (11, 3, 3, 1), np.uint8)
    part = InPart(StoredImages(InArray(images)), np.array([1, 2]), batch_size=4)
    rows = np.arange(8, 16) % 11  # two batches, of which the last is filled up
    wanted = images[rows] * np.array([0, 1, 1, 0] * 2, np.uint8).reshape(-1, 1, 1, 1)
    np.testing.assert_array_equal(part[rows], wanted)
    assert part.shape == images.shape and len(part) == 11


def at(folder, **changes):
    return dataclasses.replace(SHORT, workdir=str(folder), **changes)


def final_state(folder):
    with Checkpoints(pathlib.Path(folder)) as checkpoints:
        return jax.device_get(checkpoints.restore(initial_state(prepare_run(at(folder)))))


def assert_nearly_same_run(got, want):
    """Compares the metrics and the last state of two runs."""
    for one, other in zip(metrics_rows(got), metrics_rows(want), strict=True):
        assert one.keys() == other.keys() and one["step"] == other["step"]
        for name in one:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-3)
    pair = final_state(got), final_state(want)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *pair)


@pytest.fixture(scope="module")
def resident(tmp_path_factory):
    """Returns the folder of a run with its images on the device."""
    folder = tmp_path_factory.mktemp("resident")
    train(at(folder, input="device"))
    return folder


@pytest.fixture(scope="module")
def reading(tmp_path_factory):
    """Returns the folder of the same run that reads its images."""
    folder = tmp_path_factory.mktemp("reading")
    train(at(folder, input="grain"))
    return folder


def test_reading_gives_the_batches_of_the_device(reading, resident):
    assert_nearly_same_run(reading, resident)


def test_larger_data_are_read_by_grain_without_a_flag(monkeypatch):
    size = 1797 * 28 * 28
    for most, read in ((size + 1, False), (size - 1, True)):
        free = most / training_data.RESIDENT_SHARE
        monkeypatch.setattr(training_data, "free_bytes", lambda free=free: free)
        setup = prepare_run(SHORT)
        assert windows.is_stored(setup) == banner(setup).endswith("read by Grain") == read


def test_a_run_that_was_stopped_within_a_block_goes_on_with_the_same_bits(reading, tmp_path):
    train(at(tmp_path, input="grain", steps=5))
    train(at(tmp_path, input="grain"))
    jax.tree.map(np.testing.assert_array_equal, final_state(tmp_path), final_state(reading))


def test_a_program_without_grain_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(UserError, match="pip install -r requirements-grain.txt; or .*=device"):
        train(at(tmp_path / "run", input="grain"))
    assert not (tmp_path / "run").exists()


def test_pairs_need_all_images_in_memory(tmp_path):
    config = find_program("multimnist").defaults
    names = ("dataset", "preset", "steps", "num_devices", "cache_dir", "accelerator")
    config = dataclasses.replace(config, **{name: getattr(QUICK, name) for name in names})
    config = dataclasses.replace(config, input="grain", workdir=str(tmp_path / "run"))
    with pytest.raises(UserError, match="multimnist makes an example of several images.*device"):
        train(config)


def test_runs_that_read_are_trained_one_at_a_time(monkeypatch, tmp_path):
    alone = []
    monkeypatch.setattr(loop, "run", lambda program, config: alone.append(config.seed))
    configs = [at(tmp_path / str(seed), input="grain", seed=seed) for seed in range(2)]
    vmapped_loop.run(find_program("mnist"), configs)
    assert alone == [0]


def test_statistics_of_averaged_weights(tmp_path, monkeypatch):
    changes = {"conv_norm": "batch", "norm_place": "after"}
    tiny = dataclasses.replace(PRESETS["capsnet_tiny"], **changes)
    monkeypatch.setitem(PRESETS, "capsnet_tiny", tiny)
    config = at(tmp_path, model="capsnet", preset="tiny", ema=0.9)
    inputs = ("device", "grain")
    setups = [prepare_run(dataclasses.replace(config, input=name)) for name in inputs]
    state, key = initial_state(setups[0]), random_keys(SHORT)[1]
    source, _ = training_inputs(setups[0])
    assert jax.tree.leaves(state.stats)
    want = selection.make_statistics(setups[0])(state.average, state.stats, source, key)
    got = selection.windows_statistics(setups[1])(state.average, state.stats, None, key)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_workers_give_the_batches_in_order(workers, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, 6, 5, 1), np.uint8)
    for k, image in enumerate(images):
        (tmp_path / f"{k}.png").write_bytes(png(image).read())
    reader = InFiles([tmp_path / f"{k}.png" for k in range(12)], (6, 5), 1, "pad")
    rows = np.random.default_rng(1).integers(0, 12, (9, 4))
    found = list(read_ahead(StoredImages(reader), np.arange(12), rows, workers))
    assert len(found) == len(rows)
    for (pixels, labels), chosen in zip(found, rows):
        np.testing.assert_array_equal(pixels, images[chosen])
        np.testing.assert_array_equal(labels, chosen)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["jit", "shard_map", "pmap"])
def test_devices_share_a_window(parallel, resident, tmp_path):
    train(at(tmp_path, input="grain", parallel=parallel, num_devices=2))
    assert_nearly_same_run(tmp_path, resident)
