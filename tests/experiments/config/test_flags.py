"""Flags of a command line, and the errors of a wrong one."""

import dataclasses
import re

import pytest
from absl import flags
from helpers import MNIST, parse_mnist, run_command

from capsjax.routing import ROUTINGS
from experiments.config import Config
from experiments.config.flags import define_flags


def test_flags_are_the_fields():
    values = flags.FlagValues()
    define_flags(MNIST, values)
    assert set(values) == {f.name for f in dataclasses.fields(Config)} - {"program"}


def test_no_flags_give_the_defaults():
    assert parse_mnist() == MNIST


def test_flags_reach_the_configuration():
    got = parse_mnist(
        "--routing_iterations=5",
        "--noreconstruction",
        "--learning_rate=0.01",
        "--routing_bias",
        "--recipe=official",
        "--dataset=cifar10",
        "--routing=em",
        "--routing_prior=learned",
        "--routing_schedule=concurrent",
        "--frozen_from=a/b",
        "--votes=conv_matrix",
        "--squash=none",
        "--primary_types=3",
        "--primary_pose=4",
        "--class_pose=5",
        "--depth=2",
        "--loss=spread",
        "--diagnostics",
        "--pose_norm=none",
        "--margin_weight=official",
        "--primary_scale=-0.5",
        "--adam_epsilon_hat",
    )
    want = dataclasses.replace(
        MNIST,
        routing_iterations=5,
        reconstruction=False,
        learning_rate=0.01,
        routing_bias=True,
        recipe="official",
        dataset="cifar10",
        routing="em",
        routing_prior="learned",
        routing_schedule="concurrent",
        frozen_from="a/b",
        votes="conv_matrix",
        squash="none",
        primary_types=3,
        primary_pose=4,
        class_pose=5,
        depth=2,
        loss="spread",
        diagnostics=True,
        pose_norm="none",
        margin_weight="official",
        primary_scale=-0.5,
        adam_epsilon_hat=True,
    )
    assert got == want


@pytest.mark.parametrize(
    "flag",
    [
        "--routing_iterations=0",
        "--routing_iterations=2.5",
        "--model=resnet",
        "--epochs=-1",
        "--validation_fraction=1",
        "--seed=-1",
        "--dtype=float16",
        "--parallel=magic",
        "--learning_rate=fast",
        "--margin_weight=paper",
        "--margin_weight=-0.1",
        "--primary_scale=1/32",
        "--accelerator=abacus",
        "--recipe=mine",
        "--no_such_flag=1",
        "--decay_rate=1.5",
        "--reconstruction=perhaps",
        "--routing=",
        "--votes=1",
        "--squash=soft",
        "--routing_prior=ones",
        "--routing_schedule=random",
        "--loss=hinge",
        "--depth=-1",
        "--primary_types=-1",
        "--primary_pose=1.5",
        "--class_pose=big",
        "--diagnostics=much",
        "--preset=capsnet_mnist",
        "--schedule=linear",
        "--warmup_steps=-1",
        "--optimizer=adm",
        "--weight_decay=-0.1",
        "--clip_norm=-1",
        "--label_smoothing=1",
        "--ema=1",
        "--keep=first",
        "--early_stopping=-1",
        "--max_minutes=-1",
        "--augmentation=crop",
    ],
)
def test_invalid_flag_values_are_refused(flag):
    with pytest.raises(flags.Error):
        parse_mnist(flag)


@pytest.mark.parametrize(
    "flag, near",
    [
        ("--routing=dynamc", "dynamic"),
        ("--routing=self_atention", "self_attention"),
        ("--votes=shard", "shared"),
        ("--squash=exponentail", "exponential"),
        ("--preset=efficent", "efficient"),
        ("--loss=cross-entropy", "cross_entropy"),
        ("--routing=qqq", None),
    ],
)
def test_wrong_name_suggests_the_nearest(flag, near):
    with pytest.raises(flags.Error) as error:
        parse_mnist(flag)
    message = str(error.value)
    assert flag in message and "\n" not in message
    if near is None:
        assert "did you mean" not in message
    else:
        assert message.endswith(f", did you mean {near}?")


@pytest.mark.parametrize("value", ["offical", "-0.5", "1/20", ""])
def test_a_number_may_be_a_name(value):
    assert parse_mnist("--margin_weight=official").margin_weight == "official"
    assert parse_mnist("--margin_weight=5e-2").margin_weight == 0.05
    with pytest.raises(flags.Error, match="value should be a non-negative number or official"):
        parse_mnist(f"--margin_weight={value}")


@pytest.mark.parametrize(
    "flag, words",
    [
        ("--routing_iteration=3", ["routing_iteration", "routing_iterations"]),
        ("--routing=dynamc", ["--routing=dynamc", "did you mean dynamic?"]),
        ("--votes=shard", ["--votes=shard", "did you mean shared?"]),
    ],
)
def test_wrong_flag_is_reported_in_one_line_with_status_2(flag, words):
    done = run_command("mnist", flag)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words)


def test_help_says_what_every_routing_is():
    done = run_command("mnist", "--helpfull")
    shown = re.sub(r"\s", "", done.stdout)  # the help is wrapped, also inside words with hyphens
    assert "--routing:<" in shown and done.stderr == ""
    for name, (_, line) in ROUTINGS.items():
        assert re.sub(r"\s", "", f"{name}: {line}") in shown, name
    assert shown.count("(default:thatofthepreset)") == 5


def test_files_of_flags_are_refused(tmp_path):
    """Arguments may come from a grid or a job; a file of flags could set anything."""
    path = tmp_path / "flags"
    path.write_text("--seed=3\n")
    for dashes in ("-", "--"):
        with pytest.raises(flags.Error, match="flagfile"):
            parse_mnist(f"{dashes}flagfile={path}")
