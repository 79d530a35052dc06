"""The data set of a run: read into memory, or left where it is stored if it is too large."""

import math

import jax

from experiments.config import Config
from experiments.data import datasets
from experiments.data.image_folder import ImageOptions
from experiments.data.subset import limit_training_examples
from experiments.files import free_bytes
from experiments.training import collectives, processes
from experiments.training.devices import cache_folder

RESIDENT_SHARE = 0.3  # of the free memory that images may take; a CPU has them up to three times


def load(config: Config, devices: list[jax.Device]) -> datasets.Dataset:
    """Returns the data set that a configuration names, limited to ``--train_examples``.

    Its images are stored ones (:mod:`experiments.data.stored_images`) where ``--input`` says so.

    Raises:
      UserError: see :func:`experiments.data.datasets.load`.
    """
    dataset = datasets.load(
        config.dataset,
        data_dir=config.data_dir or None,
        cache_dir=cache_folder(config.cache_dir),
        validation_fraction=config.validation_fraction,
        options=ImageOptions(*(getattr(config, name) for name in ImageOptions._fields)),
        resident_bytes=resident_bytes(config.input, devices),
    )
    return limit_training_examples(dataset, config.train_examples)


def resident_bytes(where: str, devices: list[jax.Device]) -> float:
    """Returns the bytes that the images of a data set may have to be kept in memory.

    Args:
      where: the value of ``--input``.
      devices: of the run. Each of them has all training images; simulated ones share a memory.
    """
    if where == "device":
        return math.inf
    if where == "grain":
        return 0
    own = processes.own(devices)
    have, stats = free_bytes(), own[0].memory_stats()
    if stats:
        have = min(have, stats["bytes_limit"] - stats["bytes_in_use"])
    elif own[0].platform == "cpu":
        have /= len(own)
    return RESIDENT_SHARE * collectives.value_of_first(have)  # all processes must decide alike
