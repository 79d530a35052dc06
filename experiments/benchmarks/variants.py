"""The networks that one benchmark compares: every combination of a few flags' values."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import NamedTuple

from absl import flags

from capsjax.routing import ROUTINGS
from experiments.config import Config, UserError
from experiments.config.flags import parse_flags


class Axis(NamedTuple):
    """A flag of the benchmark that lists values of a flag of the training commands."""

    flag: str  # of the training commands
    values: tuple[str, ...]  # what "all" stands for


AXES = {
    "routings": Axis("routing", tuple(ROUTINGS)),
    "implementations": Axis("routing_implementation", ("naive", "stream", "pallas")),
    "dtypes": Axis("dtype", ("float32", "bfloat16")),
}


def parse_numbers(name: str, text: str) -> list[int]:
    """Returns the positive integers that a flag lists.

    Args:
      name: of the flag.
      text: its value, with commas between the numbers.

    Raises:
      UserError: the text holds anything else.
    """
    words = [word.strip() for word in text.split(",")]
    digits = all(word.isascii() and word.isdecimal() and len(word) < 8 for word in words)
    if not digits or not all(map(int, words)):
        raise UserError(f"--{name}={text}: numbers such as 1,32,128 are needed")
    return [int(word) for word in words]


def parse_values(name: str, text: str) -> list[str]:
    """Returns the values that a flag of :data:`AXES` lists.

    Args:
      name: of the flag.
      text: its value, with commas between the values; ``all`` stands for all of them.

    Raises:
      UserError: a value does not exist.
    """
    axis = AXES[name]
    if text == "all":
        return list(axis.values)
    values = [value.strip() for value in text.split(",")]
    for value in values:
        try:
            parse_flags(Config(), [f"--{axis.flag}={value}"])
        except flags.Error as error:
            raise UserError(f"--{name}: {error}") from error
    return values


def make_variants(config: Config, axes: dict[str, list[str]]) -> Iterator[tuple[str, Config]]:
    """Yields each network: its name, made of the values that distinguish it, and configuration.

    Args:
      config: what all networks have in common.
      axes: values of flags of :data:`AXES`.
    """
    for chosen in itertools.product(*axes.values()):
        changes = dict(zip((AXES[name].flag for name in axes), chosen, strict=True))
        yield ", ".join(chosen) or "capsjax", dataclasses.replace(config, **changes)
