"""Runs in stages equal undisturbed runs, bit for bit, with every flag of the optimization."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import (
    TINY,
    metrics_rows,
    parse_mnist,
    prepare_run,
    read_json,
    train,
)

from capsjax import OPTIMIZERS
from capsjax import train as train_step
from capsjax.models import PRESETS
from experiments.config import UserError, continuation
from experiments.data import batching
from experiments.tasks import figures
from experiments.tasks.registry import find_program
from experiments.training import chunks
from experiments.training.checkpoints import Checkpoints
from experiments.training.setup import initial_state

BASE = dataclasses.replace(
    TINY,
    steps=6,
    batch_size=8,
    log_every=2,
    validate_every=3,
    train_examples=60,
    validation_fraction=0.2,
    routing_iterations=1,
    reconstruction=False,
)


@pytest.fixture(scope="module", autouse=True)
def fast():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "of_finished_run", lambda *_: [])
        yield


def saved(workdir, config):
    """Returns everything in the newest checkpoint."""
    state = initial_state(prepare_run(config))
    with Checkpoints(workdir) as checkpoints:
        return jax.device_get(checkpoints.restore_all(state))


def stop_after_a_chunk(config, capsys):
    """Trains until the first look at the clock; returns what the run prints."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        train(dataclasses.replace(config, max_minutes=1e-9))
    assert end.value.code == 0
    return capsys.readouterr().out


def assert_stages_make_no_difference(config, folder, capsys):
    """Trains undisturbed, and in three stages; returns the summary."""
    whole = dataclasses.replace(config, workdir=str(folder / "whole"))
    parts = dataclasses.replace(config, workdir=str(folder / "parts"))
    summary = train(whole)
    for step in (2, 3):
        out = stop_after_a_chunk(parts, capsys)
        assert out.startswith(f"stopped after step {step}; to continue: python -m experiments.")
        assert out.count("\n") == 1 and not (folder / "parts/summary.json").exists()
    again = train(parts)
    assert metrics_rows(folder / "parts") == metrics_rows(folder / "whole")
    got, want = saved(folder / "parts", parts), saved(folder / "whole", whole)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    own = {"wall_seconds", "training_seconds", "images_per_second", "peak_memory_mb", "command"}
    assert {k: v for k, v in again.items() if k not in own} == {
        k: v for k, v in summary.items() if k not in own
    }
    return summary


ALL_AT_ONCE = {
    "optimizer": "lamb",
    "schedule": "cosine",
    "warmup_steps": 2,
    "weight_decay": 0.01,
    "clip_norm": 1.0,
    "loss": "cross_entropy",
    "label_smoothing": 0.1,
    "ema": 0.9,
    "keep": "best",
    "early_stopping": 5,
    "augmentation": "strong",
}
CASES = [
    pytest.param(ALL_AT_ONCE, id="all"),
    *(
        pytest.param(flags, id=name, marks=pytest.mark.slow)
        for name, flags in {
            "one_cycle": {"schedule": "one_cycle", "keep": "best", "augmentation": "affine"},
            "constant": {"schedule": "constant", "ema": 0.99, "augmentation": "flip"},
            "statistics": {"ema": 0.99},
            "best statistics": {"ema": 0.99, "keep": "best"},
            "cnn": {
                "model": "cnn",
                "routing_iterations": None,
                "ema": 0.99,
                "label_smoothing": 0.1,
                "optimizer": "adamw",
            },
        }.items()
    ),
]


@pytest.mark.parametrize("flags", CASES)
def test_stages_make_no_difference(flags, tmp_path, capsys, monkeypatch, request):
    if "statistics" in request.node.name:
        tiny = dataclasses.replace(PRESETS["capsnet_tiny"], conv_norm="batch", norm_momentum=0.5)
        monkeypatch.setitem(PRESETS, "capsnet_tiny", tiny)
    assert_stages_make_no_difference(dataclasses.replace(BASE, **flags), tmp_path, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("program", ["cifar10", "multimnist", "affnist", "svhn"])
def test_stages_make_no_difference_in_other_commands(program, tmp_path, capsys):
    """smallnorb is cifar10 with larger crops than there are digits for."""
    defaults = find_program(program).defaults
    ours = {f.name for f in dataclasses.fields(BASE)} & {
        f.name for f in dataclasses.fields(defaults)
    }
    values = {n: getattr(BASE, n) for n in ours - {"program", "max_shift"}}
    more = {"ema": 0.9, "optimizer": "lamb", "clip_norm": 1.0, "augmentation": "strong"}
    more |= {"ensemble": 2, "keep": "best"} if program == "cifar10" else {}
    more |= {"stop_at": 0.0, "curve_images": 20} if program == "affnist" else {}
    more |= {"test_pairs": 20} if program == "multimnist" else {}
    config = dataclasses.replace(defaults, **values | more)
    assert_stages_make_no_difference(config, tmp_path, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_stages_make_no_difference_to_any_optimizer(name, tmp_path, capsys):
    config = dataclasses.replace(BASE, optimizer=name, weight_decay=0.01, clip_norm=1.0)
    with jax.numpy_dtype_promotion("standard"):  # which radam needs
        assert_stages_make_no_difference(config, tmp_path, capsys)


def test_a_limit_of_time_is_no_part_of_the_run(tmp_path):
    config = dataclasses.replace(BASE, workdir="a b", max_minutes=2.0, ema=0.5)
    assert "max_minutes" not in config.identity()
    line = continuation(config, find_program("mnist").defaults)
    assert "'--workdir=a b'" in line and "--cache_dir=none" in line
    assert "--max_minutes=2.0" in line and "--ema=0.5" in line


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--keep=best", "--validation_fraction=0"], "--keep=best needs validation data"),
        (["--early_stopping=3", "--validation_fraction=0"], "--early_stopping=3 needs validation"),
        (["--label_smoothing=0.1"], "not to --loss=margin"),
        (["--adam_epsilon_hat", "--optimizer=sgd"], "applies to --optimizer=adam, not sgd"),
        (["--augmentation=affine", "--max_shift=3"], "--max_shift=3 has no effect with --augment"),
        (["--schedule=cosine", "--decay_steps=9"], "--decay_steps applies to --schedule=expon"),
        (["--schedule=constant", "--decay_rate=1"], "exponential, not to constant"),
        (["--warmup_steps=9", "--steps=9"], "--warmup_steps=9 leaves none of the 9 steps"),
    ],
)
def test_contradictions_are_refused_before_anything_is_written(flags, words, tmp_path):
    place = ["--dataset=digits", "--preset=tiny", "--cache_dir=none", "--accelerator=cpu"]
    config = parse_mnist(*place, f"--workdir={tmp_path / 'run'}", *flags)
    with pytest.raises(UserError) as error:
        train(config)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_schedule_over_the_run_fixes_its_length(tmp_path):
    short = dataclasses.replace(BASE, workdir=str(tmp_path / "run"), steps=2, schedule="cosine")
    train(short)
    with pytest.raises(UserError, match="steps=2 there, 3 here"):
        train(dataclasses.replace(short, steps=3))
    with pytest.raises(UserError, match="schedule=cosine there, exponential here"):
        train(dataclasses.replace(short, schedule="exponential"))
    names = {dataclasses.replace(short, steps=n).default_workdir() for n in (2, 3)}
    assert len(names) == 2


def test_runs_from_before_the_flags_are_continued(tmp_path):
    """Their config.json has none of them."""
    config = dataclasses.replace(BASE, workdir=str(tmp_path / "run"), steps=2)
    train(config)
    path = tmp_path / "run/config.json"
    stored = read_json(path)
    for name in ("schedule", "optimizer", "ema", "keep", "max_minutes", "label_smoothing"):
        del stored[name]
    path.write_text(json.dumps(stored))
    assert train(dataclasses.replace(config, steps=3))["steps"] == 3


def test_the_defaults_are_the_step_of_the_paper_and_nothing_else():
    """Compares what is traced, operation by operation, with Adam written out."""
    setup = prepare_run(BASE)
    adam = optax.adam(lambda step: jnp.maximum(1e-3 * 0.96 ** (step / 2000), 0.0))
    order = batching.epoch_orders(jax.random.key(0), 0, len(setup.dataset.train_labels))
    traced = []
    for one in (setup, setup._replace(optimizer=adam)):
        state = train_step.init_state(one.model, one.optimizer, jax.random.key(0))
        body = chunks.chunk_body(one, None, 1, lambda batch: batch)
        arguments = (state, one.pipeline.source, order, jax.random.key(0), 1, 0)
        traced.append(re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(body)(*arguments))))
    assert traced[0] == traced[1] and len(traced[0]) > 10_000
