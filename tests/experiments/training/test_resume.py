"""Runs that are killed or interrupted and started again, and their diagnostics."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from helpers import ROOT, config_of, figure_names, metrics_rows, prepare_run, read_json

from experiments.training.checkpoints import Checkpoints
from experiments.training.setup import initial_state


def program(workdir, *flags, cache):
    return [
        sys.executable,
        "-m",
        "experiments.mnist",
        "--dataset=digits",
        "--preset=tiny",
        "--accelerator=cpu",
        f"--workdir={workdir}",
        f"--cache_dir={cache}",
        "--train_examples=336",
        "--batch_size=16",
        "--epochs=4",
        "--log_every=4",
        "--diagnostics",
        *flags,
    ]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    command = program(folder / "run", cache=folder / "cache")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "run", folder / "cache"


def final_state(workdir):
    config = dataclasses.replace(config_of(workdir), num_devices=1)
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
    """Starts the program and sends it a signal once it has written a number of rows."""
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


@pytest.mark.slow
def test_diagnostics_of_every_epoch_equal_numpy(undisturbed):
    """Recomputes the last row from the checkpoint in NumPy."""
    workdir, _ = undisturbed
    everything = [row for row in metrics_rows(workdir) if "layer_entropy" not in row]
    measured = [row for row in everything if "entropy" in row]
    assert [row["step"] for row in measured] == [21, 42, 63, 84] and len(everything) == 32
    assert all(a["step"] == b["step"] for a, b in zip(measured, everything[7::8], strict=True))
    assert {"routing", "couplings", "logit_changes"} < figure_names(workdir)

    config = dataclasses.replace(config_of(workdir), num_devices=1)
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
        "nij,ntj->ntij", np.linalg.norm(votes, axis=3), np.linalg.norm(v, axis=3)
    )
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


def test_killed_and_resumed_run_equals_uninterrupted_run(undisturbed, tmp_path):
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
def test_run_killed_at_five_moments_resumes_exactly(undisturbed, tmp_path):
    want, cache = undisturbed
    for moment in (1, 6, 8, 14, 21):
        workdir = tmp_path / str(moment)
        command = program(workdir, cache=cache)
        assert interrupt(command, workdir, signal.SIGKILL, moment)[0] == -signal.SIGKILL
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        assert_same_run(workdir, want)


def test_interrupted_run_continues_with_the_same_command(undisturbed, tmp_path):
    want, cache = undisturbed
    workdir = tmp_path / "run"
    command = program(workdir, cache=cache)
    status, err = interrupt(command, workdir, signal.SIGINT, after_rows=2)
    assert status == 130
    assert "stopped after step" in err and "Traceback" not in err
    assert int(re.search(r"stopped after step (\d+)", err)[1]) % 21, "it waited for the epoch"
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert_same_run(workdir, want)
