"""Programs by name: their defaults, and what each adds to the shared loop.

A program is a module ``experiments.NAME`` with ``DEFAULTS``, a Config or a subclass with flags of
its own, and ``TASK``, see :mod:`experiments.task`. Whoever has only a name, or the folder of a
finished run, finds both here.
"""

import difflib
import functools
import importlib
import json
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

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
    if not hasattr(module, "DEFAULTS"):
        near = difflib.get_close_matches(name, modules, 1)
        raise UserError(f"no program {name!r}" + (f"; did you mean {near[0]}?" if near else ""))
    task = module.TASK if hasattr(module, "TASK") else find("mnist").task
    return Program(module.DEFAULTS, task)


def config_of(workdir: Path) -> "Config":
    """The (resolved) configuration of a run, from its config.json.

    Raises:
      UserError: the file can't be read, or is of another version of the program.
    """
    path = Path(workdir) / "config.json"
    try:
        stored = json.loads(path.read_text())
        return type(find(stored["program"]).defaults)(**stored)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no configuration of a run: {error}") from error
