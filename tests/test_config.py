"""Flags, defaults, recipes and the errors of a wrong command line."""

import dataclasses
import subprocess
import sys

import pytest
from absl import flags

from capsjax.train import RECIPES
from experiments import config as config_lib
from experiments.config import Config
from experiments.errors import UserError
from experiments.mnist import DEFAULTS


def parse(*arguments):
    values = flags.FlagValues()
    config_lib.define_flags(DEFAULTS, values)
    values(["program", *arguments])
    return config_lib.from_flags(DEFAULTS, values)


def test_flags_are_the_fields():
    values = flags.FlagValues()
    config_lib.define_flags(DEFAULTS, values)
    assert set(values) == {f.name for f in dataclasses.fields(Config)} - {"program"}


def test_no_flags_give_the_defaults():
    assert parse() == DEFAULTS


def test_flags_reach_the_configuration():
    got = parse("--routing_iterations=5", "--noreconstruction", "--learning_rate=0.01",
                "--routing_bias", "--recipe=official", "--dataset=cifar10")
    want = dataclasses.replace(
        DEFAULTS, routing_iterations=5, reconstruction=False, learning_rate=0.01,
        routing_bias=True, recipe="official", dataset="cifar10")
    assert got == want


@pytest.mark.parametrize("flag", [
    "--routing_iterations=0", "--routing_iterations=2.5", "--model=resnet", "--epochs=-1",
    "--validation_fraction=1", "--seed=-1", "--dtype=float16", "--parallel=magic",
    "--learning_rate=fast", "--accelerator=abacus", "--recipe=mine", "--no_such_flag=1",
    "--decay_rate=1.5", "--reconstruction=perhaps",
])
def test_nonsense_is_refused(flag):
    with pytest.raises(flags.Error):
        parse(flag)


def test_a_wrong_flag_is_one_line_and_status_2(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.mnist", "--routing_iteration=3"],
        capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "routing_iteration" in done.stderr and "routing_iterations" in done.stderr


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_fills_only_what_was_not_given(recipe):
    got = dataclasses.replace(DEFAULTS, recipe=recipe, margin_weight=0.3).resolved("mnist")
    assert got.margin_weight == 0.3
    for name, value in RECIPES[recipe].items():
        if name != "margin_weight":
            assert getattr(got, name) == value


def test_every_switch_of_a_recipe_is_a_flag_without_default():
    for recipe in RECIPES.values():
        for name in recipe:
            assert getattr(DEFAULTS, name) is None


def test_defaults_depend_on_the_data_set():
    assert (DEFAULTS.resolved("digits").epochs, DEFAULTS.resolved("digits").batch_size) == (10, 64)
    assert DEFAULTS.resolved("mnist").batch_size == 128
    assert dataclasses.replace(DEFAULTS, epochs=3).resolved("digits").epochs == 3


def test_default_workdir_depends_on_what_is_trained_and_on_nothing_else():
    base = DEFAULTS.resolved("digits")
    same = dataclasses.replace(base, epochs=99, accelerator="cpu", data_dir="x", log_every=3)
    other = dataclasses.replace(base, seed=1)
    assert base.default_workdir() == same.default_workdir() != other.default_workdir()


def test_command_gives_the_same_run_again():
    given = ["--recipe=official", "--seed=3", "--dataset=digits", "--noreconstruction",
             "--primary_scale=0.5", "--data_dir=somewhere", "--batch_size=32"]
    resolved = parse(*given).resolved("digits")
    command = resolved.command().split()
    assert command[:3] == ["python", "-m", "experiments.mnist"]
    assert "somewhere" not in resolved.command()
    again = parse(*command[3:]).resolved("digits")
    assert again == dataclasses.replace(resolved, data_dir="")


@pytest.mark.parametrize("recipe, bias, scale", [("paper", False, 1.0), ("official", True, 1 / 32)])
def test_model_config_follows_the_recipe(recipe, bias, scale):
    got = dataclasses.replace(DEFAULTS, recipe=recipe).resolved("mnist").model_config(
        (28, 28, 1), 10)
    assert (got.routing_bias, got.primary_scale, got.decoder) == (bias, scale, (512, 1024))
    plain = dataclasses.replace(DEFAULTS, reconstruction=False).resolved("mnist")
    assert plain.model_config((28, 28, 1), 10).decoder is None


def test_small_images_are_refused_by_name_and_smallest_size():
    with pytest.raises(UserError, match="tiny_set.*16x30.*17x17"):
        DEFAULTS.resolved("tiny_set").model_config((16, 30, 3), 10)
