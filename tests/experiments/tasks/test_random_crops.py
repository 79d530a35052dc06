"""The tasks of cifar10, smallnorb and svhn: published parameter counts and random crops."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers import ROOT, prepare_run, read_json, train
from npz_files import arrays, short
from tfds_builders import offline  # noqa: F401  (no test here reaches the network)

from capsjax import functional
from experiments import cifar10, smallnorb, svhn
from experiments.analysis.saved_run import stored_config
from experiments.config import UserError, names_of, network_config, resolve
from experiments.tasks.registry import find_program

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
