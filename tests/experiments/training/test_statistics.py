"""Runs of networks with running statistics: devices, checkpoints, runs together, ensembles."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest
from helpers import (
    QUICK,
    keep_rounding_small,
    metrics_rows,
    prepare_run,
    read_json,
    run_command,
    train,
)
from npz_files import arrays, short

from capsjax.models import PRESETS
from experiments import mnist
from experiments.analysis import saved_run
from experiments.config import UserError
from experiments.data import batching
from experiments.tasks import figures
from experiments.tasks.registry import find_program
from experiments.training import chunks, vmapped_loop
from experiments.training.checkpoints import Checkpoints
from experiments.training.evaluate import make_evaluate
from experiments.training.setup import initial_state, training_inputs


@pytest.fixture(scope="module", autouse=True)
def with_batch_norm():
    """The preset tiny has batch normalization, and no figures are drawn.

    Before the ReLU it would cancel the bias, whose gradient would be rounding errors.
    """
    changes = {"conv_norm": "batch", "norm_place": "after", "norm_momentum": 0.5}
    tiny = dataclasses.replace(PRESETS["capsnet_tiny"], **changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "capsnet_tiny", tiny)
        patch.setattr(figures, "of_finished_run", lambda *_: [])
        keep_rounding_small(patch)
        yield


def at(folder, **changes):
    return dataclasses.replace(QUICK, workdir=str(folder), log_every=2, **changes)


def final_state(config):
    with Checkpoints(pathlib.Path(config.workdir)) as checkpoints:
        return jax.device_get(checkpoints.restore(initial_state(prepare_run(config))))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Returns the configuration of a run of four steps, validated after each two."""
    folder = tmp_path_factory.mktemp("statistics")
    config = at(folder / "run", steps=4, validate_every=2, validation_fraction=0.1)
    train(config)
    return config


def one_step(config):
    made = prepare_run(config)
    source, key = training_inputs(made)
    order = batching.epoch_orders(key, 0, len(made.dataset.train_labels))
    state, sums = chunks.make_chunk(made)(initial_state(made), source, order, key, 1)
    return jax.device_get((state.stats, sums))


def test_four_devices_compute_the_statistics_of_the_whole_batch():
    want, sums = one_step(dataclasses.replace(QUICK, batch_size=8))
    start = initial_state(prepare_run(QUICK)).stats
    moved = jax.tree.map(lambda a, b: abs(a - np.asarray(b)).max(), want, start)
    assert min(jax.tree.leaves(moved)) > 1e-3
    for parallel in ("jit", "shard_map", "pmap"):
        config = dataclasses.replace(QUICK, batch_size=8, num_devices=4, parallel=parallel)
        stats, found = one_step(config)
        for a, b in zip(jax.tree.leaves(stats), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7, err_msg=parallel)
        np.testing.assert_allclose(found["loss"], sums["loss"], rtol=1e-5)


def test_resumed_run_equals_uninterrupted_run(finished, tmp_path):
    config = dataclasses.replace(finished, workdir=str(tmp_path / "run"))
    train(dataclasses.replace(config, steps=2))
    train(config)
    got, want = final_state(config), final_state(finished)
    assert jax.tree.leaves(want.stats) and int(want.step) == 4
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert metrics_rows(tmp_path / "run") == metrics_rows(pathlib.Path(finished.workdir))


def test_summary_and_saved_run_use_the_running_statistics(finished):
    summary = read_json(pathlib.Path(finished.workdir) / "summary.json")
    opened = saved_run.open_run(finished.workdir, accelerator="cpu", cache_dir="none")
    state = final_state(finished)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(opened.variables), state.variables)
    trained = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert summary["parameters"] == trained

    setup = prepare_run(finished)
    examples = setup.pipeline.held_out("test")
    evaluate = make_evaluate(setup)
    loss = evaluate(opened.variables, *examples)["loss"]
    np.testing.assert_allclose(summary["test_loss"], loss.mean(), rtol=1e-6)
    # Nothing depends on the other examples, which the batch's own statistics would.
    alone = evaluate(opened.variables, *(x[:3] for x in examples))["loss"]
    np.testing.assert_allclose(alone, loss[:3], rtol=1e-4)
    other = opened.variables._replace(state=jax.tree.map(np.ones_like, state.stats))
    assert abs(evaluate(other, *examples)["loss"].mean() - loss.mean()) > 1e-4


def test_checkpoint_of_other_statistics_is_refused_in_one_line(finished):
    """As of a run of an earlier version, whose preset had another normalization."""
    setup = prepare_run(finished)
    state = initial_state(setup)
    with Checkpoints(pathlib.Path(finished.workdir)) as checkpoints:
        stats = {"norms": {0: {"mean": state.step, "var": state.step}}}
        with pytest.raises(UserError, match=r"norms.0.mean is \(16,\), not \(\)"):
            checkpoints.restore(state._replace(stats=stats))


@pytest.mark.parametrize("platforms", [("cpu",), ()], ids=["one by one", "vmap"])
def test_runs_trained_together_equal_runs_alone(platforms, tmp_path, monkeypatch):
    monkeypatch.setattr(vmapped_loop, "ONE_BY_ONE", platforms)
    alone, together = (
        [at(tmp_path / f"{name}{seed}", steps=2, seed=seed) for seed in (4, 5)] for name in "at"
    )
    for config in alone:
        train(config)
    vmapped_loop.run(mnist.PROGRAM, together)
    stats = []
    for one, other in zip(alone, together):
        want, got = final_state(one), final_state(other)
        stats.append(jax.tree.leaves(got.stats)[0])
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        losses = [
            read_json(pathlib.Path(c.workdir) / "summary.json")["test_loss"] for c in (one, other)
        ]
        np.testing.assert_allclose(*losses, rtol=1e-4)
    assert abs(stats[0] - stats[1]).max() > 1e-3


@pytest.mark.slow
def test_networks_of_an_ensemble_have_statistics_of_their_own(stored, tmp_path):
    path = stored(arrays((28, 28), 10))
    made = prepare_run(short("cifar10", path, tmp_path, ensemble=2))
    state = initial_state(made)
    assert made.model.has_state
    source, key = training_inputs(made)
    order = batching.epoch_orders(key, 0, len(made.dataset.train_labels))
    start = jax.device_get(state)
    after = jax.device_get(chunks.make_chunk(made)(state, source, order, key, 1)[0])
    single = prepare_run(short("cifar10", path, tmp_path))
    chunk = chunks.make_chunk(single)
    for n in range(2):
        params, stats = jax.tree.map(lambda x, n=n: x[n], (start.params, start.stats))
        fresh = initial_state(single)._replace(params=params, stats=stats)
        want = jax.device_get(chunk(fresh, source, order, key, 1)[0])
        got = jax.tree.map(lambda x, n=n: x[n], after.stats)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want.stats), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    pixels, labels = made.pipeline.held_out("test")
    values = make_evaluate(made)(after.variables, pixels, labels)
    assert np.isfinite(values["loss"]).all()


@pytest.mark.slow
def test_pairs_of_digits_update_the_statistics(tmp_path):
    program = find_program("multimnist")
    changes = {f.name: getattr(QUICK, f.name) for f in dataclasses.fields(QUICK)}
    changes |= {"program": "multimnist", "max_shift": 0, "workdir": str(tmp_path / "run")}
    config = dataclasses.replace(program.defaults, **changes, test_pairs=20)
    summary = train(config)
    assert np.isfinite(summary["test_loss"]) and summary["steps"] == 2
    stats, start = final_state(config).stats, initial_state(prepare_run(config)).stats
    moved = jax.tree.map(lambda a, b: abs(a - np.asarray(b)).max(), stats, start)
    assert min(jax.tree.leaves(moved)) > 1e-3


def test_networks_without_statistics_have_checkpoints_as_before(tmp_path, monkeypatch):
    plain = dataclasses.replace(PRESETS["capsnet_tiny"], conv_norm="none")
    monkeypatch.setitem(PRESETS, "capsnet_tiny", plain)
    config = at(tmp_path / "run", steps=1)
    train(config)
    state = final_state(config)
    assert state.stats == () and type(state.variables) is dict
    with Checkpoints(tmp_path / "run") as checkpoints:
        fields = checkpoints._manager.item_metadata(1)
    assert set(fields) == {"step", "params", "opt_state"}


@pytest.mark.slow
def test_commands_on_a_run_of_efficient_capsnet(tmp_path):
    here = ["--accelerator=cpu", "--cache_dir=none"]
    run = f"--workdir={tmp_path / 'run'}"
    flags = ["--dataset=digits", "--preset=efficient", "--steps=2", "--batch_size=16"]
    done = run_command("mnist", *flags, "--diagnostics", *here, run)
    assert done.returncode == 0, done.stderr
    assert read_json(tmp_path / "run/config.json")["init"] == "efficient"
    where = f"--run={tmp_path / 'run'}"
    for command in (["figures"], ["equivariance", "--images=20", "--train_images=100"]):
        done = run_command(*command, where, *here)
        assert done.returncode == 0, done.stderr
