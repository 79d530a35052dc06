"""Runs that start from trained weights: what is kept, what is frozen, and how they go on."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from helpers import (
    QUICK,
    config_of,
    keep_rounding_small,
    parse_mnist,
    prepare_run,
    read_json,
    train,
)

import capsjax
from capsjax.pretrained.weights import named_variables
from experiments.config import UserError, command
from experiments.config.fine_tuning import check_patterns, factor_of, parse_factors
from experiments.tasks import figures
from experiments.tasks.registry import find_program
from experiments.training import initial_weights, vmapped_loop
from experiments.training.checkpoints import Checkpoints
from experiments.training.setup import initial_state


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    monkeypatch.setattr(figures, "of_finished_run", lambda *_: [])


def arrays(config):
    """Returns the last variables of a run by name."""
    with Checkpoints(config.folder(), read_only=True) as checkpoints:
        state = checkpoints.restore(initial_state(prepare_run(config), sources=False))
    return {name: np.asarray(x) for name, x in named_variables(state.variables).items()}


def reported(config):
    with Checkpoints(config.folder(), read_only=True) as checkpoints:
        state = initial_state(prepare_run(config), sources=False)
        found = checkpoints.restore_variables(state)
    return {name: np.asarray(x) for name, x in named_variables(found).items()}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Returns the configuration of a finished run that reports averaged weights."""
    folder = tmp_path_factory.mktemp("source") / "run"
    config = dataclasses.replace(QUICK, ema=0.5, workdir=str(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "of_finished_run", lambda *_: [])
        train(config)
    return config


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Returns the folder of a network of three classes, and its arrays."""
    config = capsjax.preset("capsnet_tiny", num_classes=3, decoder=None)
    params = capsjax.create_model(config).init(jax.random.key(9))
    folder = capsjax.save_pretrained(tmp_path_factory.mktemp("net") / "net", config, params)
    return folder, {name: np.asarray(x) for name, x in named_variables(params).items()}


def test_a_run_gives_the_weights_that_it_reports(source):
    got = initial_weights.read_source(source.workdir)
    want, last = reported(source), arrays(source)
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])
    assert any(not np.array_equal(got[name], last[name]) for name in got)


def test_arrays_of_other_shapes_stay_random(pretrained, tmp_path, capsys):
    folder, there = pretrained
    config = dataclasses.replace(QUICK, init_from=str(folder), ema=0.9)
    setup = prepare_run(config)
    state = initial_state(setup)
    drawn = initial_state(setup, sources=False)
    for params, before in ((state.params, drawn.params), (state.average, drawn.average)):
        found, before = named_variables(params), named_variables(before)
        for name in found:
            want = before[name] if name == "params.classes.kernel" else there[name]
            np.testing.assert_array_equal(found[name], want)
    told = capsys.readouterr().err
    shapes = f"{list(there['params.classes.kernel'].shape)} there"
    assert shapes in [line for line in told.splitlines() if " classes " in line][0]
    assert "replaced" in told and "primary.conv" in told and told.count("kept") == 3


@pytest.mark.slow
def test_a_resumed_run_does_not_need_its_source(source, tmp_path):
    """Bit-exact with frozen parameters, factors, averaged weights and two devices."""
    copy = shutil.copytree(source.workdir, tmp_path / "source")
    changes = {"init_from": str(copy), "freeze": "^conv\\.", "learning_rate_of": "primary=0.5"}
    changes |= {
        "ema": 0.9,
        "num_devices": 2,
        "parallel": "shard_map",
        "optimizer": "adamw",
        "weight_decay": 0.1,
    }
    whole = dataclasses.replace(QUICK, **changes, steps=4, workdir=str(tmp_path / "whole"))
    train(whole)
    half = dataclasses.replace(whole, steps=2, workdir=str(tmp_path / "half"))
    train(half)
    recorded = read_json(tmp_path / "half" / "config.json")["recorded"]["init_from"]
    assert recorded == initial_weights.checksum_of(source.workdir) != ""
    shutil.rmtree(copy)
    train(dataclasses.replace(half, steps=4))
    assert read_json(tmp_path / "half" / "config.json")["recorded"]["init_from"] == recorded
    for read in (arrays, reported):
        found, want = read(config_of(tmp_path / "half")), read(config_of(tmp_path / "whole"))
        for name in want:
            np.testing.assert_array_equal(found[name], want[name])
            frozen = name.startswith("params.conv.")
            assert np.array_equal(want[name], reported(source)[name]) == frozen, name


def test_another_source_of_the_same_name_is_refused(pretrained, source, tmp_path):
    folder = shutil.copytree(pretrained[0], tmp_path / "net")
    config = dataclasses.replace(QUICK, init_from=str(folder), workdir=str(tmp_path / "run"))
    train(config)
    moved = dataclasses.replace(config, init_from=str(pretrained[0]))
    train(moved)  # the same weights may be at another place
    tiny = capsjax.preset("capsnet_tiny", num_classes=3, decoder=None)
    capsjax.save_pretrained(folder, tiny, capsjax.create_model(tiny).init(jax.random.key(1)))
    with pytest.raises(UserError, match="the contents of --init_from=.* have the checksum"):
        train(config)


def test_user_errors_write_nothing(pretrained, tmp_path):
    cases = {
        "neither a folder nor a packaged network": {"init_from": "nowhere"},
        "nothing of it fits this network": {"init_from": str(pretrained[0]), "preset": "deep"},
        "write it as REGEX=FACTOR": {"learning_rate_of": "conv"},
        "with a factor above 0": {"learning_rate_of": "conv=0"},
        "is no regular expression": {"freeze": "("},
        "no parameter has such a path; there are classes.kernel, conv.bias": {"freeze": "nothing"},
        "--learning_rate_of=head: no parameter": {"learning_rate_of": "conv=2;head=3"},
        "leaves no parameter to train": {"freeze": "."},
    }
    for message, changes in cases.items():
        config = dataclasses.replace(QUICK, **changes, workdir=str(tmp_path / "run"))
        with pytest.raises(UserError) as error:
            train(config)
        assert message in str(error.value) and "\n" not in str(error.value)
        assert not (tmp_path / "run").exists()


def test_ensembles_start_from_random_weights_alone(pretrained):
    setup = prepare_run(QUICK)
    config = dataclasses.replace(setup.config, init_from=str(pretrained[0]))
    crops = type("Crops", (), {**vars(config), "ensemble": 2, "folder": config.folder})()
    with pytest.raises(UserError, match="all networks would start alike"):
        initial_weights.check(setup._replace(config=crops))


def test_flags_are_repeated_and_the_first_match_counts():
    given = parse_mnist("--learning_rate_of=conv=2", "--learning_rate_of=a=b=0.5", "--freeze=^x|y")
    assert given.learning_rate_of == "conv=2;a=b=0.5"
    assert parse_factors(given.learning_rate_of) == [("conv", 2.0), ("a=b", 0.5)]
    factor = factor_of(dataclasses.replace(given, learning_rate_of="conv.k=2;conv=3;.=0.5"))
    values = [factor(p) for p in ("conv.k", "conv.b", "z", "x.conv", "primary.y")]
    assert values == [2.0, 3.0, 0.5, 0.0, 0.0]
    assert factor_of(parse_mnist()) is None
    check_patterns(parse_mnist(), ["a"])
    assert "'--freeze=^x|y'" in command(given, parse_mnist())


@pytest.mark.slow
def test_runs_that_are_trained_together_start_from_the_source(pretrained, tmp_path, monkeypatch):
    keep_rounding_small(monkeypatch)
    start = dataclasses.replace(QUICK, init_from=str(pretrained[0]), freeze="^primary")
    alone, *together = (
        dataclasses.replace(start, seed=seed, workdir=str(tmp_path / name))
        for name, seed in (("alone", 1), ("a", 0), ("b", 1))
    )
    train(alone)
    vmapped_loop.run(find_program("mnist"), together)
    want, found = arrays(alone), arrays(together[1])
    for name in want:
        np.testing.assert_allclose(found[name], want[name], atol=1e-6)
    kernel = "params.primary.conv.kernel"
    for config in together:
        np.testing.assert_array_equal(arrays(config)[kernel], pretrained[1][kernel])
