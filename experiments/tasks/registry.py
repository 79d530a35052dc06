"""The commands that train, by name: an explicit table, so that no file can choose an import."""

import difflib
import importlib

from experiments.config import UserError
from experiments.tasks.base import Program

# Every module has a PROGRAM. Saved runs and sweeps, which know a name only, look it up here.
PROGRAMS = {
    "mnist": "experiments.mnist",
    "cifar10": "experiments.cifar10",
    "smallnorb": "experiments.smallnorb",
    "svhn": "experiments.svhn",
    "multimnist": "experiments.multimnist",
    "affnist": "experiments.affnist",
}


def find_program(name: str) -> Program:
    """Returns the program of a name.

    Raises:
      UserError: the table has no such name.
    """
    if name not in PROGRAMS:
        near = difflib.get_close_matches(str(name), PROGRAMS, 1)
        raise UserError(f"no program {name!r}" + (f"; did you mean {near[0]}?" if near else ""))
    return importlib.import_module(PROGRAMS[name]).PROGRAM
