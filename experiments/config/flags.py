"""A frozen dataclass as the flags of a command: every field that has a setting is a flag."""

import dataclasses
import difflib
import math
import sys
import typing
from collections.abc import Callable
from typing import Any, TypeVar

from absl import flags

from experiments import UserError
from kernels import cli

Settings = TypeVar("Settings")  # a frozen dataclass


LARGEST = 2**31 - 1  # of integers, unless a setting says more
# What a flag may mean to the programs, in addition to its value.
ROLES = {
    "capsules": "it applies only to capsule networks",
    "numeric": "a step is a function of the number: runs with other values share one program",
    "free": "a run may be continued with another value",
    "neutral": "it has no part in the result of a run",
    "local": "it describes this machine: it is never read back from a saved run",
    "path": "it is a place or a limit on this machine: local, left out of commands for others",
    "contents": "results depend on what is at the path: commands for others say PATH",
    "later": "runs from before there was the flag are runs with its default",
    "fits_couplings": "a run may differ in it from the run whose couplings it takes",
}


def setting(default, help, *, choices=None, low=None, high=None, by="", roles="", many=False):
    """Declares a field that is a flag.

    Args:
      default: value where the flag is not given; None where ``by`` says who decides.
      help: text of ``--help``.
      choices: legal values, None for any. Of a field that is a number or a text: the names that
        may take the place of a number.
      low, high: smallest and largest legal number.
      by: what provides the value where it is None, ``recipe`` or ``preset``.
      roles: names of :data:`ROLES`, separated by spaces.
      many: whether the flag may be repeated; the value is all of them, joined by semicolons.
    """
    found = set(roles.split())
    assert found <= ROLES.keys(), roles
    found |= {"local"} if "path" in found else set()
    metadata = {"help": help, "choices": choices, "low": low, "high": high, "by": by}
    metadata |= {"many": many, "roles": found}
    return dataclasses.field(default=default, metadata=metadata)


def names_of(settings: Any, role: str) -> tuple[str, ...]:
    """Returns the names of the fields of a dataclass that have a role, see :data:`ROLES`."""
    fields = dataclasses.fields(settings)
    return tuple(f.name for f in fields if role in f.metadata.get("roles", ()))


def later_defaults(settings: Any) -> dict[str, Any]:
    """Returns what runs mean that were saved before there was a flag, by name of the field."""
    later = names_of(settings, "later")
    return {f.name: f.default for f in dataclasses.fields(settings) if f.name in later}


class _Choice(flags.EnumParser):
    """Parses one of several names; the error for another name suggests the nearest one."""

    def parse(self, argument):
        try:
            return super().parse(argument)
        except ValueError as error:
            near = difflib.get_close_matches(argument, self.enum_values, 1)
            raise ValueError(f"{error}, did you mean {near[0]}?" if near else error) from error


class _Integer(flags.IntegerParser):
    """Parses an integer; steps and sizes are integers of 32 bits on devices."""

    def parse(self, argument):
        found = super().parse(argument)
        if not -LARGEST <= found <= max(LARGEST, self.upper_bound or 0):
            raise ValueError(f"more than {LARGEST:,} is not possible")
        return found


class _Number(flags.FloatParser):
    """Parses a finite number."""

    def parse(self, argument):
        found = super().parse(argument)
        if not math.isfinite(found):
            raise ValueError("a finite number is needed")
        return found


class _OrName:
    """Parses a number as the other base class does, or a name in its place."""

    def __init__(self, low, high, names):
        super().__init__(low, high)
        self.names = names

    def parse(self, argument):
        if argument in self.names:
            return argument
        try:
            return super().parse(argument)
        except ValueError as error:
            legal = " or ".join([self.syntactic_help, *self.names])
            raise ValueError(f"value should be {legal}") from error


class _NumberOrName(_OrName, _Number):
    pass


class _IntegerOrName(_OrName, _Integer):
    pass


OR_NAME = {
    frozenset({float, str}): _NumberOrName,
    frozenset({int, str}): _IntegerOrName,
}


def flag_name(field: dataclasses.Field) -> str:
    """Returns the name of the flag of a field, without a final underscore as in ``class_``."""
    return field.name.removesuffix("_")


def define_flags(defaults: Settings, flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines one absl flag for each field that has a :func:`setting`."""
    module = sys.argv[0]
    for f in dataclasses.fields(defaults):
        if not f.metadata.get("flag", True):
            continue
        kinds = set(typing.get_args(f.type)) - {type(None)} or {f.type}
        or_name, kind = OR_NAME.get(frozenset(kinds)), next(iter(kinds))
        name, value, text = flag_name(f), getattr(defaults, f.name), f.metadata["help"]
        low, high = f.metadata["low"], f.metadata["high"]
        if value is None:
            text += f" (default: that of the {f.metadata['by']})"
        common = {"flag_values": flag_values, "module_name": module}
        if or_name:
            parser = or_name(low, high, f.metadata["choices"])
            flags.DEFINE(parser, name, value, text, **common)
        elif f.metadata["choices"]:
            flag = flags.EnumFlag(name, value, text, f.metadata["choices"])
            flag.parser = _Choice(f.metadata["choices"])
            flags.DEFINE_flag(flag, flag_values, module)
        elif kind is bool:
            flags.DEFINE_boolean(name, value, text, **common)
        elif kind is int:
            flags.DEFINE(_Integer(low, high), name, value, text, **common)
        elif kind is float:
            flags.DEFINE(_Number(low, high), name, value, text, **common)
        elif f.metadata["many"]:
            flags.DEFINE_multi_string(name, value or None, text, **common)
        else:
            flags.DEFINE_string(name, value, text, **common)


def from_flags(defaults: Settings, flag_values: flags.FlagValues = flags.FLAGS) -> Settings:
    """Returns the configuration that parsed flags describe."""
    fields = [f for f in dataclasses.fields(defaults) if f.metadata.get("flag", True)]
    values = {f.name: flag_values[flag_name(f)].value for f in fields}
    values |= {f.name: ";".join(values[f.name] or ()) for f in fields if f.metadata["many"]}
    return dataclasses.replace(defaults, **values)


def parse_flags(defaults: Settings, arguments: list[str]) -> Settings:
    """Returns the configuration that a list of arguments describes, in place of ``sys.argv``.

    Raises:
      flags.Error: an unknown flag, a wrong value, or a file of flags.
    """
    for argument in arguments:
        if argument.lstrip("-").partition("=")[0] == "flagfile":
            raise flags.UnrecognizedFlagError("flagfile")
    values = flags.FlagValues()
    define_flags(defaults, values)
    values(["program", *arguments])
    return from_flags(defaults, values)


def run(main: Callable[..., None], defaults: Settings, *, words: bool = False) -> None:
    """Parses the flags of a command and calls ``main``; user errors are reported in one line.

    See :func:`kernels.cli.run`.
    """
    define_flags(defaults)
    cli.run(lambda *rest: main(from_flags(defaults), *rest), UserError, words=words)
