"""Programs by name: their defaults, and what each adds to the shared loop.

A program is a module ``experiments.NAME`` with ``DEFAULTS``, a Config or a subclass with flags of
its own, and ``TASK``, see :mod:`experiments.task`. Whoever has only a name, or the folder of a
finished run, finds both here.
"""

import dataclasses
import difflib
import functools
import importlib
import json
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from absl import flags

from experiments import settings
from experiments.errors import UserError

if TYPE_CHECKING:
    from experiments.config import Config
    from experiments.task import Task


class Program(NamedTuple):
    """What a module of a program holds."""

    defaults: "Config"
    task: "Task"


@functools.cache
def find(name: str) -> Program:
    """The program of a name; one that has no task trains as mnist does.

    Raises:
      UserError: there is none.
    """
    modules = [m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)])]
    module = importlib.import_module(f"experiments.{name}") if name in modules else None
    if not hasattr(getattr(module, "DEFAULTS", None), "program"):  # it trains nothing
        near = difflib.get_close_matches(name, modules, 1)
        raise UserError(f"no program {name!r}" + (f"; did you mean {near[0]}?" if near else ""))
    task = module.TASK if hasattr(module, "TASK") else find("mnist").task
    return Program(module.DEFAULTS, task)


def config_of(workdir: Path | str, /, **changes) -> "Config":
    """The (resolved) configuration of a run, from its config.json, with fields changed.

    Raises:
      UserError: it is not there, or not one of this version's.
    """
    folder = Path(workdir)
    path = folder / "config.json"
    if not folder.is_dir():
        there = [p.name for p in folder.parent.glob("*/")]
        near = difflib.get_close_matches(folder.name, there, 1)
        hint = f", did you mean {folder.parent / near[0]}?" if near else ""
        raise UserError(f"{folder}: no such folder{hint}")
    try:
        stored = json.loads(path.read_text()) | changes
        defaults = find(stored["program"]).defaults
        is_flag = {f.name: f.metadata.get("flag", True) for f in dataclasses.fields(defaults)}
        flagged = {n: v for n, v in stored.items() if is_flag.get(n, True) and v is not None}
        others = {n: v for n, v in stored.items() if not is_flag.get(n, True)}
        given = settings.parse(defaults, [f"--{n}={v}" for n, v in flagged.items()])
        return dataclasses.replace(given, **others)
    except (OSError, ValueError, KeyError, TypeError, flags.Error) as error:
        raise UserError(f"{path} is no configuration of a run of this version: {error}") from error
