"""The programs as a user runs them: every path for two steps, errors, kill and resume."""

import dataclasses
import gzip
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from helpers import ROOT, TINY, metrics_rows, prepare_run, read_json, train

from capsjax import functional
from capsjax.routing import ROUTINGS
from experiments.config import Config, UserError, resolve
from experiments.config.flags import parse_flags
from experiments.data import batching
from experiments.training import loop
from experiments.training.checkpoints import Checkpoints
from experiments.training.setup import initial_state, training_inputs
from experiments.training.workdir import open_workdir


@pytest.mark.parametrize("changes", [
    {},
    {"recipe": "official", "routing_gradient": "stop"},
    {"routing_gradient": "last", "routing_iterations": 1, "max_shift": 0},
    {"reconstruction": False, "validation_fraction": 0.0},
    {"dtype": "bfloat16"},
    {"model": "cnn"},
    {"parallel": "jit", "num_devices": 2},
    {"parallel": "shard_map", "num_devices": 2},
    {"parallel": "pmap", "num_devices": 2},
], ids=lambda c: "-".join(map(str, c.values())) or "default")
def test_every_path_for_two_steps(changes, tmp_path, capsys):
    config = dataclasses.replace(TINY, workdir=str(tmp_path), **changes)
    summary = train(config)
    out, err = capsys.readouterr()
    assert read_json(tmp_path / "summary.json") == summary
    assert summary["steps"] == 2 and summary["test_examples"] == 360
    assert summary["test_error"] == pytest.approx(100 * summary["test_errors"] / 360, abs=1e-3)
    assert summary["dataset"] == "digits" and summary["num_devices"] == config.num_devices
    assert f"{summary['parameters']:,} parameters" in err
    drawn = config.model == "capsnet" and config.reconstruction
    pictures = sorted(p.name for p in (tmp_path / "figures").iterdir())
    assert pictures == (["perturbations.png", "reconstructions.png", "training_curves.png"]
                        if drawn else ["training_curves.png"])
    assert all(str(tmp_path / "figures" / name) in out for name in pictures)
    assert all(np.isfinite(row["loss"]) for row in metrics_rows(tmp_path) if "loss" in row)
    assert read_json(tmp_path / "config.json")["dataset"] == "digits"
    assert list((tmp_path / "tensorboard").iterdir())


# Small runs that are compiled with few optimisations, in half the time.
QUICK = dataclasses.replace(TINY, reconstruction=False, validation_fraction=0.0, batch_size=16)
# What differs from three passes, the margin loss and squashed primary capsules.
PASSES = {"uniform": 1, "random": 1, "static": 1, "frozen": 1, "self": 1, "self_attention": 2}
LOSS = {"self": "cross_entropy", "inverted": "cross_entropy", "heinsen": "cross_entropy",
        "em": "spread"}
UNSQUASHED = {"self", "em", "vb"}
USUAL = {"frozen", "sparsemax", "self", "heinsen"}  # of the routings; the others are slow tests


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def figure_names(workdir):
    return {path.stem for path in (workdir / "figures").iterdir()}


def test_profile_traces_the_second_chunk_and_changes_nothing(tmp_path):
    config = dataclasses.replace(QUICK, steps=9, log_every=2)
    plain, traced = (
        train(dataclasses.replace(config, workdir=str(tmp_path / name), profile=steps))
        for name, steps in [("plain", 0), ("traced", 3)])
    assert [row["step"] for row in metrics_rows(tmp_path / "traced")] == [2, 5, 6, 8, 9]
    assert metrics_rows(tmp_path / "plain")[-1] == metrics_rows(tmp_path / "traced")[-1]
    assert plain["test_errors"] == traced["test_errors"]
    assert not (tmp_path / "plain" / "profile").exists()
    (folder,) = (tmp_path / "traced" / "profile" / "plugins" / "profile").iterdir()
    assert list(folder.glob("*.xplane.pb"))  # TensorBoard's
    trace = json.loads(gzip.decompress((folder / "perfetto_trace.json.gz").read_bytes()))
    assert any("hlo_op" in event.get("args", {}) for event in trace["traceEvents"])


def test_validation_within_epochs_changes_nothing_else(tmp_path):
    """Epochs of three steps, two of them in an order that is drawn at once."""
    config = dataclasses.replace(
        QUICK, steps=10, log_every=5, train_examples=48, validation_fraction=0.3)
    plain, often = (
        train(dataclasses.replace(config, workdir=str(tmp_path / name), validate_every=steps))
        for name, steps in [("plain", 0), ("often", 4)])

    def validated(name):
        return [row["step"] for row in metrics_rows(tmp_path / name) if "validation_error" in row]

    assert (validated("plain"), validated("often")) == ([6, 10], [4, 8, 10])
    assert plain["test_loss"] == often["test_loss"]
    assert plain["validation_loss"] == often["validation_loss"]


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory):
    """A dynamic run whose couplings are no longer even, for the frozen ones."""
    workdir = tmp_path_factory.mktemp("dynamic")
    config = dataclasses.replace(
        QUICK, routing="dynamic", workdir=str(workdir), learning_rate=0.01, steps=6,
        validation_fraction=0.3)
    return config, workdir, train(config)


@pytest.mark.parametrize("routing", [
    r if r in USUAL else slow(r) for r in ROUTINGS if r != "dynamic"])
def test_every_routing_for_two_steps(routing, dynamic, tmp_path):
    config, source, _ = dynamic
    summary = train(dataclasses.replace(
        config, routing=routing, workdir=str(tmp_path), steps=2, diagnostics=True,
        frozen_from=str(source) if routing == "frozen" else ""))
    passes = PASSES.get(routing, 3)
    loss = LOSS.get(routing, "margin")
    want = {"routing": routing, "routing_iterations": passes, "votes": "full", "loss": loss,
            "squash": "none" if routing in UNSQUASHED else "paper", "depth": 1, "steps": 2,
            "reconstruction": False}
    assert {name: summary[name] for name in want} == want
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    assert 100 < summary["peak_memory_mb"] <= used + 1
    assert np.isfinite(summary["test_loss"])
    trained, validated, measured = metrics_rows(tmp_path)
    assert np.isfinite(trained[f"{loss}_loss"]) and "validation_error" in validated
    assert len(measured["entropy"]) == passes and len(measured["logit_change"]) == passes - 1
    pictures = {"training_curves", "routing", "couplings", *["logit_changes"] * (passes > 1)}
    assert figure_names(tmp_path) == pictures


@pytest.mark.parametrize("changes, want", [
    slow({"preset": "matrix", "primary_types": 2},
         {"routing": "em", "votes": "conv_matrix", "squash": "none", "loss": "spread", "depth": 3}),
    ({"preset": "efficient"},
     {"routing": "self_attention", "routing_iterations": 2, "squash": "exponential",
      "parameters": 161_824}),
    ({"preset": "deep", "depth": 2, "primary_types": 2, "routing": "inverted",
      "routing_schedule": "concurrent"},
     {"squash": "exponential", "loss": "cross_entropy", "depth": 2}),
    slow({"preset": "deep", "depth": 4, "primary_types": 2}, {"routing": "dynamic", "depth": 4}),
    slow({"preset": "deep", "primary_types": 2, "routing": "uniform"},
         {"routing_iterations": 1, "depth": 4}),
    ({"votes": "conv", "routing": "em", "loss": "margin", "routing_iterations": 2},
     {"routing_iterations": 2, "squash": "none", "parameters": 16 * 82 + 16 * 81 * 32 + 32
      + 4 * 10 * 16 * 8 + 2 * 10}),
    ({"votes": "matrix", "primary_pose": 16}, {"depth": 1}),
    slow({"votes": "shared", "routing_prior": "learned"}, {}),
    slow({"votes": "elementwise", "routing": "vb", "loss": "cross_entropy"}, {}),
    slow({"votes": "conv_matrix", "primary_pose": 9, "squash": "half"}, {}),
    slow({"routing_schedule": "concurrent"}, {"routing_iterations": 3}),
], ids=lambda x: "-".join(map(str, x.values())))
def test_networks_for_two_steps(changes, want, tmp_path):
    summary = train(dataclasses.replace(QUICK, workdir=str(tmp_path), **changes))
    given = {name: changes[name] for name in changes.keys() & summary.keys()}
    want = {"steps": 2, "routing": "dynamic", "votes": "full", "loss": "margin"} | given | want
    assert {name: summary[name] for name in want} == want
    (row,) = metrics_rows(tmp_path)
    assert np.isfinite(row["loss"]) and row[f"{want['loss']}_loss"] == pytest.approx(row["loss"])
    assert np.isfinite(summary["test_loss"])


@pytest.mark.parametrize("changes, message", [
    ({"routing_prior": "learned", "routing": "em"}, "--routing_prior=learned: em has no prior"),
    ({"frozen_from": "runs/x"}, "--frozen_from goes with --routing=frozen"),
    ({"preset": "deep", "depth": 5}, "--depth=5: --preset=deep has 4 routed"),
    ({"preset": "mnist", "depth": 2}, "--depth=2: --preset=mnist has 1 routed"),
    ({"votes": "matrix", "primary_pose": 8}, "square number of components, not 8"),
    ({"votes": "elementwise", "class_pose": 4}, "8 can't become 4"),
    ({"routing": "inverted", "loss": "margin"}, "--loss=margin: .*use cross_entropy"),
    ({"preset": "deep", "model": "cnn"}, "deep"),
    ({"routing": "em", "routing_implementation": "pallas_interpret"},
     "--routing_implementation=pallas_interpret: em routing .*use stream"),
    ({"votes": "conv", "routing_implementation": "pallas_interpret"},
     "--routing_implementation=pallas_interpret: .*these votes has no kernels, use stream"),
    ({"diagnostics": True, "routing_schedule": "concurrent"},
     "--diagnostics goes with --routing_schedule=sequential"),
    ({"preset": "matrix", "routing_schedule": "concurrent"}, "'em' has no concurrent schedule"),
    ({"preset": "matrix", "primary_pose": 8}, "8 can't become 16"),
    ({"routing_schedule": "concurrent", "routing_gradient": "stop"}, "concurrent .*'stop'"),
    ({"preset": "deep", "depth": 2, "routing": "frozen"}, "one routed layer"),
    ({"routing": "frozen", "routing_iterations": 2}, "first run python -m experiments.mnist "
     "--dataset=digits .*--preset=tiny .*--routing_iterations=2"),
    ({"preset": "efficient", "primary_types": 8}, "128"),
    ({"model": "cnn", "routing": "frozen"}, "cnn"),
], ids=lambda x: "-".join(map(str, x.values())) if isinstance(x, dict) else "")
def test_wrong_combinations_are_one_line_and_leave_nothing(changes, message, tmp_path, capsys):
    config = dataclasses.replace(QUICK, workdir=str(tmp_path / "run"), **changes)
    with pytest.raises(UserError, match=message):
        train(config)
    assert capsys.readouterr() == ("", "")
    assert not (tmp_path / "run").exists()


def test_frozen_says_which_command_comes_first(tmp_path, monkeypatch):
    """The command is the right one: after it the run without --frozen_from works."""
    monkeypatch.chdir(tmp_path)
    frozen = dataclasses.replace(QUICK, routing="frozen", workdir="frozen", steps=1)
    with pytest.raises(UserError, match="first run") as error:
        train(frozen)
    command = re.search(r"first run python -m experiments.mnist (.*?), or", str(error.value))[1]
    train(dataclasses.replace(
        parse_flags(Config(), command.split()), cache_dir="none", steps=1))
    assert train(frozen)["routing"] == "frozen"


@pytest.mark.parametrize("changes, message", [
    ({"preset": "small"}, "preset=tiny there, small here"),
    ({"validation_fraction": 0.1}, "validation_fraction=0.3 there, 0.1 here"),
    ({"votes": "shared"}, "votes=full there, shared here"),
])
def test_couplings_of_another_kind_of_run_are_refused(dynamic, changes, message, tmp_path):
    config, source, _ = dynamic
    with pytest.raises(UserError, match=f"--frozen_from={source} is another kind.*{message}"):
        train(dataclasses.replace(
            config, routing="frozen", frozen_from=str(source), workdir=str(tmp_path), **changes))


def test_an_unfinished_run_has_no_couplings_to_take(dynamic, tmp_path):
    config, source, _ = dynamic
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", source, copy], check=True)
    (copy / "summary.json").unlink()
    with pytest.raises(UserError, match="a finished dynamic run"):
        train(dataclasses.replace(
            config, routing="frozen", frozen_from=str(copy), workdir=str(tmp_path / "run")))


def test_frozen_takes_the_mean_couplings_and_training_keeps_them(dynamic, tmp_path):
    config, source, _ = dynamic
    # Another seed, so that nothing but the couplings comes from there.
    config_here = dataclasses.replace(
        config, routing="frozen", frozen_from=str(source), workdir=str(tmp_path), seed=1, steps=2)
    setup = prepare_run(config_here)
    before = jax.device_get(initial_state(setup).params)

    other = prepare_run(config)
    with Checkpoints(source) as checkpoints:
        params = checkpoints.restore(initial_state(other)).params
    naive = dataclasses.replace(other.model_config, routing_implementation="naive")
    encode = jax.jit(lambda x: functional.create_model(naive).apply(params, x, method="encode").coupling)
    images = other.dataset.train_images.astype(np.float32) / 255
    # In two parts of the same size and in float64.
    couplings = [np.float64(encode(part)) for part in np.split(images, 2)]
    want = np.concatenate(couplings).mean(axis=0)
    assert len(images) == 1006 and want.shape == (144, 10)
    assert np.abs(want - 0.1).max() > 0.003, "the couplings are no longer even"
    got = np.exp(np.float64(before["classes"]["prior"]))
    np.testing.assert_allclose(got, want, rtol=2e-5)

    train(config_here)
    with Checkpoints(tmp_path) as checkpoints:
        after = jax.device_get(checkpoints.restore(initial_state(setup)).params)
    np.testing.assert_array_equal(after["classes"]["prior"], before["classes"]["prior"])
    assert np.abs(after["classes"]["kernel"] - before["classes"]["kernel"]).max() > 0
    assert np.abs(before["classes"]["kernel"] - params["classes"]["kernel"]).max() > 0.01


@pytest.mark.parametrize("implementation, steps, batch_size", [
    ("stream", 8, 16), ("pallas_interpret", 3, 4),
])
def test_implementations_of_routing_give_the_same_losses(implementation, steps, batch_size):
    losses = []
    for name in ("naive", implementation):
        setup = prepare_run(dataclasses.replace(
            TINY, batch_size=batch_size, routing_implementation=name))
        chunk, state = loop.make_chunk(setup), initial_state(setup)
        source, key = training_inputs(setup)
        order = batching.epoch_orders(key, 0, len(setup.dataset.train_labels))
        losses.append([])
        for _ in range(steps):
            state, sums = chunk(state, source, order, key, 1)
            losses[-1].append(float(sums["loss"]))
    assert losses[0][-1] != losses[0][0]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_kernels_are_refused_where_they_cannot_run(tmp_path):
    config = dataclasses.replace(TINY, routing_implementation="pallas", workdir=str(tmp_path / "x"))
    with pytest.raises(UserError, match="--routing_implementation=pallas: .* not on cpu"):
        train(config)
    assert not (tmp_path / "x").exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    config = dataclasses.replace(TINY, workdir=str(workdir))
    return config, workdir, train(config)


def test_a_finished_run_is_only_reported_again(finished, monkeypatch):
    config, workdir, summary = finished
    before = metrics_rows(workdir)
    monkeypatch.setattr("experiments.training.summary.peak_memory_mb", lambda device: 10**6)  # not training's
    again = train(config)
    same = set(summary) - {"wall_seconds"}
    assert {k: again[k] for k in same} == {k: summary[k] for k in same}
    assert metrics_rows(workdir) == before


@pytest.mark.parametrize("changes, message", [
    ({"seed": 1}, "seed=0 there, 1 here"),
    ({"routing_iterations": 2}, "routing_iterations=3 there, 2 here"),
    ({"steps": 1}, "already done 2 steps and 1 are asked for"),
])
def test_a_workdir_of_another_run_is_refused_and_kept(finished, changes, message):
    config, workdir, _ = finished
    before = (workdir / "config.json").read_text(), metrics_rows(workdir)
    with pytest.raises(UserError, match=message):
        train(dataclasses.replace(config, **changes))
    assert ((workdir / "config.json").read_text(), metrics_rows(workdir)) == before


def test_a_damaged_checkpoint_is_named(finished, tmp_path):
    config, workdir, _ = finished
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", workdir, copy], check=True)
    for path in (copy / "checkpoints" / "2" / "default").rglob("*"):
        if path.is_file():
            path.write_bytes(b"damaged")
    with pytest.raises(UserError, match="checkpoint 2 .*can't be read"):
        train(dataclasses.replace(config, workdir=str(copy)))


def test_a_workdir_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written"):
        train(dataclasses.replace(TINY, workdir=str(tmp_path / "file" / "run")))


def test_a_workdir_in_use(tmp_path):
    config = resolve(dataclasses.replace(TINY, workdir=str(tmp_path)), "digits")
    with open_workdir(config):
        # The lock belongs to the opening, not to the process: this needs no second one.
        with pytest.raises(UserError, match="another process is training"):
            with open_workdir(config):
                pass
    with open_workdir(config):
        pass


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(tmp_path):
    config = dataclasses.replace(TINY, workdir=str(tmp_path), learning_rate=1e30, steps=30)
    with pytest.raises(UserError, match="the loss is (nan|inf) after step"):
        train(config)
    assert not (tmp_path / "summary.json").exists()


def program(workdir, *flags, cache):
    return [sys.executable, "-m", "experiments.mnist", "--dataset=digits", "--preset=tiny",
            "--accelerator=cpu", f"--workdir={workdir}", f"--cache_dir={cache}",
            "--train_examples=336", "--batch_size=16", "--epochs=4", "--log_every=4",
            "--diagnostics", *flags]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    command = program(folder / "run", cache=folder / "cache")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "run", folder / "cache"


def final_state(workdir):
    config = Config(**read_json(workdir / "config.json") | {"num_devices": 1})
    state = initial_state(prepare_run(config))
    with Checkpoints(workdir) as checkpoints:
        return jax.device_get(checkpoints.restore(state))


def assert_same_run(got, want):
    assert metrics_rows(got) == metrics_rows(want)
    jax.tree.map(np.testing.assert_array_equal, final_state(got), final_state(want))
    summaries = [read_json(w / "summary.json") for w in (got, want)]
    for name in ("test_error", "test_loss", "validation_error", "steps", "parameters"):
        assert summaries[0][name] == summaries[1][name]


def interrupt(command, workdir, number, after_rows):
    """Start the program and send it a signal once it has written so many rows."""
    path = workdir / "metrics.jsonl"
    with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as child:
        while child.poll() is None:
            if path.exists() and len(path.read_text().splitlines()) >= after_rows:
                os.kill(child.pid, number)
                break
            time.sleep(0.002)
        _, err = child.communicate()
    return child.returncode, err


def test_diagnostics_of_every_epoch(undisturbed):
    """The last row is measured again, from the checkpoint and in NumPy."""
    workdir, _ = undisturbed
    everything = metrics_rows(workdir)
    measured = [row for row in everything if "entropy" in row]
    assert [row["step"] for row in measured] == [21, 42, 63, 84] and len(everything) == 32
    assert all(a["step"] == b["step"] for a, b in zip(measured, everything[7::8], strict=True))
    assert {"routing", "couplings", "logit_changes"} < figure_names(workdir)

    config = Config(**read_json(workdir / "config.json") | {"num_devices": 1})
    setup = prepare_run(config)
    params = final_state(workdir).params
    images = setup.dataset.validation_images.astype(np.float32) / 255
    assert len(images) == 72
    apply = setup.model.apply
    trace = jax.jit(lambda x: apply(params, x, trace=True, method="encode").aux)(images)
    u = jax.jit(lambda x: apply(params, x, method="primary_capsules").pose)(images)
    b, c, v, a = map(np.float64, trace)
    assert c.shape == b.shape == (72, 3, 144, 10) and a.shape == (72, 3, 10)
    active = a[:, -1] > 0.5
    votes = np.einsum("ijdk,nik->nijd", np.float64(params["classes"]["kernel"]), np.float64(u))
    cosine = np.einsum("nijd,ntjd->ntij", votes, v) / np.einsum(
        "nij,ntj->ntij", np.linalg.norm(votes, axis=3), np.linalg.norm(v, axis=3))
    agreement = np.sum(c * cosine, axis=2) / np.sum(c, axis=2)
    want = {
        "entropy": -np.mean(np.sum(c * np.log(c), axis=3), axis=(0, 2)) / np.log(10),
        "logit_change": np.mean(np.abs(b[:, 1:] - b[:, :-1]), axis=(0, 2, 3)),
        "agreement": np.mean(agreement, axis=(0, 2)),
        "spread_over_examples": np.mean(np.std(c[:, -1], axis=0)),
        "dead": (active.sum(axis=0) == 0).sum(),
        "always_on": (active.sum(axis=0) == 72).sum(),
    }
    assert measured[-1].keys() == want.keys() | {"step", "epoch"}
    for name, value in want.items():
        np.testing.assert_allclose(measured[-1][name], value, atol=2e-6, err_msg=name)
    assert measured[-1]["logit_change"][1] > 1e-3


def test_killed_and_resumed_equals_undisturbed(undisturbed, tmp_path):
    want, cache = undisturbed
    workdir = tmp_path / "run"
    command = program(workdir, cache=cache)
    # The save after the second epoch has waited for the first one's.
    status, _ = interrupt(command, workdir, signal.SIGKILL, after_rows=17)
    assert status == -signal.SIGKILL
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "continuing" in done.stderr, done.stderr
    assert_same_run(workdir, want)


@pytest.mark.slow
def test_killed_at_five_moments(undisturbed, tmp_path):
    want, cache = undisturbed
    for moment in (1, 6, 8, 14, 21):
        workdir = tmp_path / str(moment)
        command = program(workdir, cache=cache)
        assert interrupt(command, workdir, signal.SIGKILL, moment)[0] == -signal.SIGKILL
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        assert_same_run(workdir, want)


def test_ctrl_c_stops_cleanly_and_the_same_command_continues(undisturbed, tmp_path):
    want, cache = undisturbed
    workdir = tmp_path / "run"
    command = program(workdir, cache=cache)
    status, err = interrupt(command, workdir, signal.SIGINT, after_rows=2)
    assert status == 130
    assert "stopped after step" in err and "Traceback" not in err
    assert int(re.search(r"stopped after step (\d+)", err)[1]) % 21, "it waited for the epoch"
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert_same_run(workdir, want)


def test_a_user_error_is_one_line_and_status_2(tmp_path):
    done = subprocess.run(
        program(tmp_path, "--dataset=mnist", f"--data_dir={tmp_path}", cache=tmp_path),
        cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "config.json").exists()


def test_whoever_has_read_enough_is_told_no_more():
    command = [sys.executable, "-m", "experiments.mnist", "--help"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as one:
        one.stdout.close()  # long before the program has anything to say
        assert one.stderr.read() == b"" and one.wait() == 1
