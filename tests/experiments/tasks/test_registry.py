"""What programs share and what is their own: the registry, flags of one program, few examples."""

import dataclasses
import sys
import types

import numpy as np
import pytest
from absl import flags
from helpers import TINY, load_digits, read_json, train

from experiments import mnist
from experiments.analysis.saved_run import stored_config
from experiments.config import Config, UserError, resolve, setting
from experiments.config import command as command_of
from experiments.config.flags import define_flags, parse_flags
from experiments.data import subset
from experiments.tasks import registry
from experiments.tasks.base import Program
from experiments.tasks.classification import CLASSIFICATION
from experiments.training.workdir import write_config


@dataclasses.dataclass(frozen=True)
class OwnConfig(Config):
    """A program's own flag, one with another default, and one less."""

    sides: int = setting(3, "of something", low=1)
    seed: int = setting(7, "of everything random", low=0)
    max_shift: int = dataclasses.field(default=0, metadata={"flag": False})


@pytest.fixture
def own(monkeypatch):
    """A program with a flag of its own and mnist's task, in the table as "own"."""
    module = types.ModuleType("own_program")
    module.PROGRAM = Program(OwnConfig(program="own"), CLASSIFICATION)
    monkeypatch.setitem(sys.modules, "own_program", module)
    monkeypatch.setitem(registry.PROGRAMS, "own", "own_program")
    return module.PROGRAM.defaults


def test_programs_are_found_by_name():
    assert registry.find_program("mnist") is mnist.PROGRAM
    for name in registry.PROGRAMS:
        assert registry.find_program(name).defaults.program == name


@pytest.mark.parametrize("name, message", [
    ("mnits", "no program 'mnits'; did you mean mnist?"), ("figures", "no program 'figures'"),
    ("../mnist", "no program"), ("", "no program ''"),
])
def test_other_names_are_no_programs(name, message):
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


def test_a_run_is_opened_as_what_it_is(own, tmp_path):
    resolved = resolve(dataclasses.replace(own, sides=9), "digits")
    write_config(resolved, tmp_path)
    assert stored_config(tmp_path) == resolved
    mnist_config = resolve(mnist.PROGRAM.defaults, "digits")
    write_config(mnist_config, tmp_path)
    assert stored_config(tmp_path) == mnist_config


@pytest.mark.parametrize("text", [None, "{", "{}", '{"program": "mnist", "no_such": 1}', "[]"])
def test_a_folder_that_is_no_run(text, tmp_path):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="config.json is no configuration of a run"):
        stored_config(tmp_path)


LABELS = np.random.default_rng(0).choice(4, 500, p=[0.5, 0.3, 0.15, 0.05]).astype(np.int32)


def test_first_parts_of_the_balanced_order_are_balanced():
    order = subset.balanced_order(LABELS)
    assert sorted(order) == list(range(500))
    there = np.bincount(LABELS)
    for n in range(1, 501):
        counts = np.bincount(LABELS[order[:n]], minlength=4)
        # Independent: as even as can be means that only used-up classes stay behind.
        left = counts[counts < there]
        assert left.size == 0 or left.max() - left.min() <= 1
        assert all(c == t or c >= counts.max() - 1 for c, t in zip(counts, there, strict=True)), n


def test_the_order_is_a_shuffled_one():
    """Within a class it is the order of one fixed permutation of all."""
    shuffled = np.random.RandomState(20171026).permutation(500)
    order = subset.balanced_order(LABELS)
    for which in range(4):
        np.testing.assert_array_equal(
            order[LABELS[order] == which], shuffled[LABELS[shuffled] == which])


def test_few_training_examples():
    whole = load_digits()
    twenty, ten = (subset.limit_training_examples(whole, n) for n in (20, 10))
    assert len(whole.train_labels) == 1365
    np.testing.assert_array_equal(np.bincount(twenty.train_labels), [2] * 10)
    np.testing.assert_array_equal(twenty.train_images[:10], ten.train_images)
    rows = [np.flatnonzero((whole.train_images == image).all((1, 2, 3))) for image in
            twenty.train_images]
    for which, label in zip(rows, twenty.train_labels, strict=True):
        assert label in whole.train_labels[which]
    np.testing.assert_array_equal(twenty.test_images, whole.test_images)
    np.testing.assert_array_equal(twenty.validation_images, whole.validation_images)
    with pytest.raises(UserError, match="--train_examples=1366: digits has 1365 to train on"):
        subset.limit_training_examples(whole, 1366)


def test_a_run_on_few_examples(tmp_path):
    config = dataclasses.replace(
        TINY, reconstruction=False, batch_size=10, steps=0, epochs=2, train_examples=30,
        workdir=str(tmp_path))
    summary = train(config)
    assert (summary["train_examples"], summary["steps"]) == (30, 6)
    assert "--train_examples=30" in summary["command"]
    assert read_json(tmp_path / "config.json")["train_examples"] == 30
