"""A frozen dataclass as the flags of a program.

A field becomes a flag of its name; its metadata hold the help text, the legal values, whose value
stands in for one that is not given (``by``), and whether a run may be continued with another
value (``free``).
"""

import dataclasses
import difflib
import sys
import typing
from collections.abc import Callable
from typing import Any, TypeVar

from absl import flags

from experiments.errors import UserError
from kernels import cli

Settings = TypeVar("Settings")  # a frozen dataclass


def setting(
    default,
    help,
    *,
    choices=None,
    low=None,
    high=None,
    by="",
    capsules=False,
    numeric=False,
    free=False,
    neutral=False,
    local=False,
    path=False,
    fits_couplings=False,
):
    """Declares a field that is a flag, with everything that its value means to the programs.

    Args:
      default: value where the flag is not given; None where ``by`` says who decides.
      help: text of ``--help``.
      choices: legal values, None for any. low, high: smallest and largest legal number.
      by: what provides the value where it is None: ``recipe`` or ``preset``.
      capsules: the flag applies only to capsule networks.
      numeric: a training step is a function of the number, so that runs that differ in it can
        share one compiled program.
      free: a run may be continued with another value.
      neutral: the value has no part in the result of a run.
      local: the value describes this machine; it is never read back from a saved run.
      path: the value is a place on this machine: local, and left out of commands for others.
      fits_couplings: a run may differ in it from the run whose couplings it takes.
    """
    metadata = {
        "help": help,
        "choices": choices,
        "low": low,
        "high": high,
        "by": by,
        "capsules": capsules,
        "numeric": numeric,
        "free": free,
        "neutral": neutral,
        "local": local or path,
        "path": path,
        "fits_couplings": fits_couplings,
    }
    return dataclasses.field(default=default, metadata=metadata)


def names_of(settings: Any, meaning: str) -> tuple[str, ...]:
    """Returns the names of the fields that were declared with a meaning of :func:`setting`.

    Args:
      settings: a dataclass or an instance of one.
      meaning: ``capsules``, ``numeric``, ``free``, ``neutral``, ``local``, ``path``,
        ``fits_couplings`` or ``by``.
    """
    return tuple(f.name for f in dataclasses.fields(settings) if f.metadata.get(meaning))


class _Choice(flags.EnumParser):
    """One of several names; a wrong one is answered with the nearest."""

    def parse(self, argument):
        try:
            return super().parse(argument)
        except ValueError as error:
            near = difflib.get_close_matches(argument, self.enum_values, 1)
            raise ValueError(f"{error}, did you mean {near[0]}?" if near else error) from error


def flag_name(field: dataclasses.Field) -> str:
    """Of a field's flag: without the underscore that parts a name from a keyword of Python."""
    return field.name.removesuffix("_")


def define_flags(defaults: Settings, flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """One absl flag per field of the configuration."""
    module = sys.argv[0]
    for f in dataclasses.fields(defaults):
        if not f.metadata.get("flag", True):
            continue
        kinds = set(typing.get_args(f.type)) - {type(None)} or {f.type}
        (kind,) = kinds
        name, value, text = flag_name(f), getattr(defaults, f.name), f.metadata["help"]
        low, high = f.metadata["low"], f.metadata["high"]
        if value is None:
            text += f" (default: the {f.metadata['by']}'s)"
        common = {"flag_values": flag_values, "module_name": module}
        if f.metadata["choices"]:
            flag = flags.EnumFlag(name, value, text, f.metadata["choices"])
            flag.parser = _Choice(f.metadata["choices"])
            flags.DEFINE_flag(flag, flag_values, module)
        elif kind is bool:
            flags.DEFINE_boolean(name, value, text, **common)
        elif kind is int:
            flags.DEFINE_integer(name, value, text, low, high, **common)
        elif kind is float:
            flags.DEFINE_float(name, value, text, low, high, **common)
        else:
            flags.DEFINE_string(name, value, text, **common)


def from_flags(defaults: Settings, flag_values: flags.FlagValues = flags.FLAGS) -> Settings:
    """The configuration that parsed flags describe."""
    fields = [f for f in dataclasses.fields(defaults) if f.metadata.get("flag", True)]
    values = {f.name: flag_values[flag_name(f)].value for f in fields}
    return dataclasses.replace(defaults, **values)


def parse_flags(defaults: Settings, arguments: list[str]) -> Settings:
    """The configuration of a command line, without the process's own flags.

    Raises:
      flags.Error: an unknown flag or a wrong value.
    """
    values = flags.FlagValues()
    define_flags(defaults, values)
    values(["program", *arguments])
    return from_flags(defaults, values)


def run(main: Callable[..., None], defaults: Settings, *, words: bool = False) -> None:
    """Run a program: parse the flags, call ``main``, end in one line where the user erred.

    See :func:`kernels.cli.run`.
    """
    define_flags(defaults)
    cli.run(lambda *rest: main(from_flags(defaults), *rest), UserError, words=words)
