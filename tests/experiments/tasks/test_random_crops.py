"""The tasks of cifar10, smallnorb and svhn: published parameter counts and random crops."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers import read_json, run_command, train
from npz_files import arrays, short
from tfds_builders import offline  # noqa: F401  (no test here reaches the network)

from capsjax import PRESETS, functional
from experiments import cifar10, smallnorb, svhn
from experiments.config import UserError, network_config, resolve

# Parameters: section 7 of the paper, or what its authors' code makes, with the bias of s_j.
NETWORKS = {
    "cifar10": (cifar10.PROGRAM.defaults, (24, 24, 3), 10, 22_476_448),
    "smallnorb": (smallnorb.PROGRAM.defaults, (32, 32, 2), 5, 9_327_184),
    "svhn": (
        svhn.PROGRAM.defaults,
        (32, 32, 3),
        10,
        (81 * 3 + 1) * 64 + (81 * 64 + 1) * 96 + 8 * 8 * 16 * 10 * 6 * 8 + 80,
    ),
}


@pytest.mark.parametrize("defaults, shape, classes, count", NETWORKS.values(), ids=NETWORKS)
def test_published_numbers_of_parameters(defaults, shape, classes, count):
    config = resolve(dataclasses.replace(defaults, routing_bias=True), defaults.dataset)
    network = network_config(config, shape, classes)
    assert network == network_config(config, network.image_shape, network.num_classes)
    shapes = jax.eval_shape(functional.create_model(network).init, jax.random.key(0))
    assert functional.count_parameters(shapes) == count


def test_networks_have_the_published_sizes():
    network = network_config(resolve(cifar10.PROGRAM.defaults, "cifar10"), (24, 24, 3), 10)
    assert (network.routing, network.input_capsules, network.decoder) == ("leaky", 9216, None)
    assert network.primary_grid == (12, 12)
    network = network_config(resolve(smallnorb.PROGRAM.defaults, "smallnorb"), (32, 32, 2), 5)
    assert (network.routing, network.input_capsules) == ("dynamic", 2048)
    network = network_config(resolve(svhn.PROGRAM.defaults, "svhn_cropped"), (32, 32, 3), 10)
    assert (network.primary_pose, network.class_pose, network.decoder) == (6, 8, None)


def test_published_networks_for_smallnorb_take_its_crops():
    """The preprocessing of a preset gives images of the size of its network."""
    raw = jax.ShapeDtypeStruct((96, 96, 2), np.uint8)
    for name, made in smallnorb.PUBLISHED.items():
        config = resolve(dataclasses.replace(smallnorb.PROGRAM.defaults, preset=name), "smallnorb")
        shape = jax.eval_shape(made.evaluate, raw).shape
        assert shape[:2] == PRESETS[f"capsnet_{name}"].image_shape[:2]
        network = network_config(config, shape, 5)
        assert network.windows == PRESETS[f"capsnet_{name}"].windows and network.decoder is None


def test_images_smaller_than_the_crop_are_refused(tmp_path):
    config = short("smallnorb", "digits", tmp_path)
    with pytest.raises(UserError, match="28x28 pixels are too few for crops of 32x32"):
        train(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("program", ["cifar10", "svhn", "multimnist"])
def test_from_the_command_line(program, stored, tmp_path):
    path = stored(arrays((32, 32) if program == "multimnist" else (32, 32, 3), 10))
    done = run_command(
        program,
        f"--dataset={path}",
        "--preset=tiny",
        "--steps=1",
        "--batch_size=8",
        "--accelerator=cpu",
        f"--workdir={tmp_path / 'run'}",
        f"--cache_dir={tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    assert read_json(tmp_path / "run" / "summary.json")["program"] == program
