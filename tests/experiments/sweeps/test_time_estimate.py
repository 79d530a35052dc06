"""Estimates of the time of runs, against arithmetic counted by hand."""

import dataclasses

import pytest
from helpers import MNIST, prepare_run

from experiments.config.flags import parse_flags
from experiments.sweeps import plan, time_estimate

FLAGS = [
    "--dataset=digits",
    "--model=cnn",
    "--preset=tiny",
    "--batch_size=16",
    "--steps=100",
    "--accelerator=cpu",
    "--cache_dir=none",
]


def test_work_is_that_of_the_layers(monkeypatch):
    monkeypatch.setattr("capsjax.conv._fastest", lambda *shapes: "im2col")
    setup = prepare_run(parse_flags(MNIST, FLAGS))
    model, (side, _, channels) = setup.model_config, setup.model_config.image_shape
    weights = 0
    for width, kernel in zip(model.channels, model.kernels):  # padded, so of every pixel
        weights += side**2 * kernel**2 * channels * width
        channels = width
        side //= 1 + model.pool
    sizes = (side**2 * channels, *model.dense, 10)
    weights += sum(m * n for m, n in zip(sizes, sizes[1:]))
    # Two operations a weight: forward, and the gradients of weights and inputs. No gradient of
    # the image is needed, and augmentation and Adam add some.
    images = 100 * 16 + (360 + 72) / 3
    assert 0.7 < time_estimate.run_flops(setup) / (6 * weights * images) < 1.4


def test_time_grows_with_steps_and_runs(monkeypatch):
    monkeypatch.setattr(time_estimate.bench, "matrix_rate", lambda: 1e9)

    def seconds(grid, *flags):
        given = plan.changed_flags(parse_flags(MNIST, [*FLAGS, *flags]), MNIST)
        study = plan.find_study(None, grid)
        runs = plan.make(
            study, given, plan.Path("runs"), MNIST, {row: [{}] for row in study.rows}, study.seeds
        )
        return time_estimate.estimate_seconds(runs, MNIST)

    one = seconds("seed=0")
    assert one > time_estimate.FIXED_SECONDS
    assert seconds("seed=0..2") == pytest.approx(3 * one)
    assert seconds("learning_rate=0.1,0.01") == pytest.approx(2 * one)
    longer = seconds("seed=0", "--steps=10000")
    fixed = time_estimate.FIXED_SECONDS
    assert longer - fixed == pytest.approx(100 * (one - fixed), rel=0.3)
    assert seconds("seed=0", "--accelerator=gpu") is None
    assert seconds("seed=0", "--dataset=cifar10") is None


def test_datasets_on_this_machine_are_found(tmp_path):
    def at_hand(**changes):
        return time_estimate._has_data(dataclasses.replace(MNIST, **changes))

    assert at_hand(dataset="digits")
    folder = tmp_path / "datasets"
    folder.mkdir()
    assert not at_hand(cache_dir=str(tmp_path)) and not at_hand(dataset=f"{tmp_path}/own.npz")
    for path in (folder / "mnist.npz", tmp_path / "own.npz"):
        path.write_text("")
    assert at_hand(cache_dir=str(tmp_path)) and at_hand(dataset=f"{tmp_path}/own.npz")
    assert at_hand(dataset=f"{folder}/") and not at_hand(dataset=f"{tmp_path}/none/")


def test_time_in_words():
    words = [time_estimate.in_words(s) for s in (None, 0.4, 89, 100, 5399, 7200)]
    assert words == ["unknown time", "0 s", "89 s", "2 min", "90 min", "2.0 h"]
