"""The programs as a user runs them: every path for two steps, errors, kill and resume."""

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from experiments import io, loop, sampling
from experiments.config import Config
from experiments.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
TINY = Config(dataset="digits", preset="tiny", steps=2, num_devices=1, cache_dir="none",
              accelerator="cpu")
TIMES = ("seconds", "images_per_second")


def rows(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


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
    summary = loop.run(config)
    out, err = capsys.readouterr()
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert summary["steps"] == 2 and summary["test_examples"] == 360
    assert summary["test_error"] == pytest.approx(100 * summary["test_errors"] / 360, abs=1e-3)
    assert summary["dataset"] == "digits" and summary["num_devices"] == config.num_devices
    assert f"{summary['parameters']:,} parameters" in err
    drawn = config.model == "capsnet" and config.reconstruction
    pictures = sorted(p.name for p in (tmp_path / "figures").iterdir())
    assert pictures == (["perturbations.png", "reconstructions.png", "training_curves.png"]
                        if drawn else ["training_curves.png"])
    assert all(str(tmp_path / "figures" / name) in out for name in pictures)
    assert all(np.isfinite(row["loss"]) for row in rows(tmp_path) if "loss" in row)
    assert json.loads((tmp_path / "config.json").read_text())["dataset"] == "digits"
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize("implementation, steps, batch_size", [
    ("stream", 20, 64), ("pallas_interpret", 3, 4),
])
def test_implementations_of_routing_give_the_same_losses(implementation, steps, batch_size):
    losses = []
    for name in ("naive", implementation):
        setup = loop.prepare(dataclasses.replace(
            TINY, batch_size=batch_size, routing_implementation=name))
        chunk, state = loop.make_chunk(setup), loop.initial_state(setup)
        source, key = loop.training_inputs(setup)
        order = sampling.epoch_order(key, 0, len(setup.dataset.train_labels))
        losses.append([])
        for _ in range(steps):
            state, sums = chunk(state, source, order, key, 1)
            losses[-1].append(float(sums["loss"]))
    assert losses[0][-1] != losses[0][0]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_kernels_are_refused_where_they_cannot_run(tmp_path):
    config = dataclasses.replace(TINY, routing_implementation="pallas", workdir=str(tmp_path / "x"))
    with pytest.raises(UserError, match="--routing_implementation=pallas: .* not on cpu"):
        loop.run(config)
    assert not (tmp_path / "x").exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    config = dataclasses.replace(TINY, workdir=str(workdir))
    return config, workdir, loop.run(config)


def test_a_finished_run_is_only_reported_again(finished):
    config, workdir, summary = finished
    before = rows(workdir)
    again = loop.run(config)
    same = set(summary) - {"wall_seconds"}
    assert {k: again[k] for k in same} == {k: summary[k] for k in same}
    assert rows(workdir) == before


@pytest.mark.parametrize("changes, message", [
    ({"seed": 1}, "seed=0 there, 1 here"),
    ({"routing_iterations": 2}, "routing_iterations=3 there, 2 here"),
    ({"steps": 1}, "already done 2 steps and 1 are asked for"),
])
def test_a_workdir_of_another_run_is_refused_and_kept(finished, changes, message):
    config, workdir, _ = finished
    before = (workdir / "config.json").read_text(), rows(workdir)
    with pytest.raises(UserError, match=message):
        loop.run(dataclasses.replace(config, **changes))
    assert ((workdir / "config.json").read_text(), rows(workdir)) == before


def test_a_damaged_checkpoint_is_named(finished, tmp_path):
    config, workdir, _ = finished
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", workdir, copy], check=True)
    for path in (copy / "checkpoints" / "2" / "default").rglob("*"):
        if path.is_file():
            path.write_bytes(b"damaged")
    with pytest.raises(UserError, match="checkpoint 2 .*can't be read"):
        loop.run(dataclasses.replace(config, workdir=str(copy)))


def test_a_workdir_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written"):
        loop.run(dataclasses.replace(TINY, workdir=str(tmp_path / "file" / "run")))


def test_a_workdir_in_use(tmp_path):
    config = dataclasses.replace(TINY, workdir=str(tmp_path)).resolved("digits")
    with io.open_workdir(config):
        # The lock belongs to the opening, not to the process: this needs no second one.
        with pytest.raises(UserError, match="another process is training"):
            with io.open_workdir(config):
                pass
    with io.open_workdir(config):
        pass


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(tmp_path):
    config = dataclasses.replace(TINY, workdir=str(tmp_path), learning_rate=1e30, steps=30)
    with pytest.raises(UserError, match="the loss is (nan|inf) after step"):
        loop.run(config)
    assert not (tmp_path / "summary.json").exists()


def program(workdir, *flags, cache):
    return [sys.executable, "-m", "experiments.mnist", "--dataset=digits", "--preset=tiny",
            "--accelerator=cpu", f"--workdir={workdir}", f"--cache_dir={cache}",
            "--epochs=4", "--log_every=4", *flags]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    command = program(folder / "run", cache=folder / "cache")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "run", folder / "cache"


def final_state(workdir):
    config = Config(**json.loads((workdir / "config.json").read_text()) | {"num_devices": 1})
    state = loop.initial_state(loop.prepare(config))
    with io.Checkpoints(workdir) as checkpoints:
        return jax.device_get(checkpoints.restore(state))


def assert_same_run(got, want):
    assert rows(got) == rows(want)
    jax.tree.map(np.testing.assert_array_equal, final_state(got), final_state(want))
    summaries = [json.loads((w / "summary.json").read_text()) for w in (got, want)]
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


def test_killed_and_resumed_equals_undisturbed(undisturbed, tmp_path):
    want, cache = undisturbed
    workdir = tmp_path / "run"
    command = program(workdir, cache=cache)
    status, _ = interrupt(command, workdir, signal.SIGKILL, after_rows=9)
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
