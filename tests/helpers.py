"""Helpers that tests of several folders share."""

import dataclasses
import functools
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import optax

from experiments.config import Config
from experiments.config.flags import parse_flags
from experiments.data import datasets
from experiments.tasks.registry import find_program
from experiments.training import loop, setup
from experiments.training.devices import cache_folder

ROOT = pathlib.Path(__file__).resolve().parent.parent
MNIST = find_program("mnist").defaults
# The shortest run of a program: two steps of a tiny network.
TINY = Config(
    dataset="digits",
    preset="tiny",
    steps=2,
    num_devices=1,
    cache_dir="none",
    accelerator="cpu",
)
QUICK = dataclasses.replace(TINY, reconstruction=False, validation_fraction=0.0, batch_size=16)
TIMES = ("seconds", "images_per_second")


def train(config):
    """Trains a run by the program that its configuration names; returns the summary."""
    return loop.run(find_program(config.program), config)


def prepare_run(config, dataset=None):
    """Returns the setup of a run of the program that its configuration names."""
    return setup.prepare(find_program(config.program), config, dataset)


def parse_mnist(*arguments):
    """Returns the configuration of a command line of experiments.mnist."""
    return parse_flags(MNIST, list(arguments))


def keep_rounding_small(patch):
    """Keeps rounding errors of runs that are compiled in different ways below 1e-6.

    Adam divides by the size of a gradient: where that is smaller than its rounding error, which
    depends on the processor, the error becomes a whole step. A larger epsilon rules that out. The
    form of convolutions is the one with the smallest errors.
    """
    patch.setattr("optax.adam", functools.partial(optax.adam, eps=1e-4))
    patch.setattr("capsjax.conv._fastest", lambda *_: "im2col")


def run_command(module, *arguments):
    """Runs a module of experiments in a process of its own; returns the finished process."""
    command = [sys.executable, "-m", f"experiments.{module}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def read_json(path):
    """Returns the value in a JSON file."""
    return json.loads(path.read_text())


def config_of(workdir):
    """Returns the settings in the config.json of a run."""
    stored = read_json(workdir / "config.json")
    return Config(**{name: value for name, value in stored.items() if name != "recorded"})


def metrics_rows(workdir):
    """Returns the rows of metrics.jsonl without measured times, which differ between runs."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


@functools.cache
def load_digits():
    """Returns the digits of scikit-learn, as a run without a cache folder sees them."""
    return datasets.load("digits", cache_dir=cache_folder("none"))


def filled(model, seed=0):
    """Returns random variables without zeros: a zero bias, say, leaves its use untested."""
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        x = (0.5 * rng.normal(size=shape.shape)).astype(np.float32)
        return abs(x) if path[-1] == jax.tree_util.DictKey("var") else x  # a variance

    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(draw, shapes)


def as_float64(tree):
    """Returns the arrays of a tree as NumPy arrays in float64."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def compiled(function, *args):
    """Compiles a function for arguments like these."""
    return jax.jit(function).lower(*args).compile()


def figure_names(workdir):
    """Returns the names of the figures of a run, without their endings."""
    return {path.stem for path in (workdir / "figures").iterdir()}
