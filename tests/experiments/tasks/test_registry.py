"""The table of programs, and the flags of a single program."""

import dataclasses
import sys
import types

import pytest
from absl import flags

from experiments import mnist
from experiments.analysis.saved_run import stored_config
from experiments.config import Config, UserError, resolve, setting
from experiments.config import command as command_of
from experiments.config.flags import define_flags, parse_flags
from experiments.tasks import registry
from experiments.tasks.base import Program
from experiments.tasks.classification import CLASSIFICATION
from experiments.training.workdir import write_config


@dataclasses.dataclass(frozen=True)
class OwnConfig(Config):
    """Adds a flag, changes the default of another, and removes a third."""

    sides: int = setting(3, "of something", low=1)
    seed: int = setting(7, "of everything random", low=0)
    max_shift: int = dataclasses.field(default=0, metadata={"flag": False})


@pytest.fixture
def own(monkeypatch):
    """Registers a program with a flag of its own and mnist's task as "own"."""
    module = types.ModuleType("own_program")
    module.PROGRAM = Program(OwnConfig(program="own"), CLASSIFICATION)
    monkeypatch.setitem(sys.modules, "own_program", module)
    monkeypatch.setitem(registry.PROGRAMS, "own", "own_program")
    return module.PROGRAM.defaults


def test_programs_are_found_by_name():
    assert registry.find_program("mnist") is mnist.PROGRAM
    for name in registry.PROGRAMS:
        assert registry.find_program(name).defaults.program == name


@pytest.mark.parametrize(
    "name, message",
    [
        ("mnits", "no program 'mnits'; did you mean mnist?"),
        ("figures", "no program 'figures'"),
        ("../mnist", "no program"),
        ("", "no program ''"),
    ],
)
def test_unknown_programs_are_refused(name, message):
    with pytest.raises(UserError, match=message):
        registry.find_program(name)


def test_flags_of_one_program(own):
    values = flags.FlagValues()
    define_flags(own, values)
    shared = {f.name for f in dataclasses.fields(Config)} - {"program", "max_shift"}
    assert set(values) == shared | {"sides"}
    got = parse_flags(own, ["--sides=5", "--epochs=2", "--batch_size=8"])
    assert type(got) is OwnConfig and (got.sides, got.seed, got.max_shift) == (5, 7, 0)
    resolved = resolve(got, "digits")
    assert type(resolved) is OwnConfig and resolved.identity()["sides"] == 5
    command = "python -m experiments.own --dataset=digits --epochs=2 --batch_size=8 "
    command += "--sides=5"
    assert command_of(resolved, own) == command
    assert resolve(parse_flags(own, command.split()[3:]), "digits") == resolved
    another = dataclasses.replace(resolved, sides=4)
    assert another.default_workdir() != resolved.default_workdir()
    with pytest.raises(flags.Error):
        parse_flags(own, ["--max_shift=1"])


def test_stored_configuration_has_the_class_of_its_program(own, tmp_path):
    resolved = resolve(dataclasses.replace(own, sides=9), "digits")
    write_config(resolved, tmp_path)
    assert stored_config(tmp_path) == resolved
    mnist_config = resolve(mnist.PROGRAM.defaults, "digits")
    write_config(mnist_config, tmp_path)
    assert stored_config(tmp_path) == mnist_config
