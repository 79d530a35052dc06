"""Runs of two processes: equal to those of one, killed and continued, refused where they differ."""

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from helpers import ROOT, metrics_rows, parse_mnist, prepare_run, read_json, train

from experiments.config import UserError
from experiments.config.distribution import Distribution, check_distribution
from experiments.tasks import figures
from experiments.training.checkpoints import Checkpoints
from experiments.training.setup import initial_state

SECONDS = 420  # after which a process counts as hanging; others may use the machine
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
# Trains several runs, one after another, without figures, which others test. With --input=auto
# process 0 alone, which decides for all, has no memory for the data.
TRAIN = """
import json, sys, helpers
from experiments.tasks import figures
from experiments.training import training_data
figures.of_finished_run = lambda *_: []
usual = training_data.free_bytes
for arguments in json.loads(sys.argv[1]):
    first = {"--input=auto", "--process_id=0"} <= set(arguments)
    training_data.free_bytes = (lambda: 0) if first else usual
    helpers.train(helpers.parse_mnist(*arguments))
"""
# The first step subtracts the gradient from the parameters, and the later ones hardly anything, so
# that their losses are those of the same weights on the images of each batch.
ONE_STEP = (
    "--optimizer=sgd",
    "--learning_rate=1",
    "--decay_rate=1e-30",
    "--decay_steps=1",
    "--log_every=1",
    "--validate_every=3",
    "--batch_size=8",
    "--preset=tiny",
    "--noreconstruction",
    "--accelerator=cpu",
    "--cache_dir=none",
)


def free_port():
    """Returns a port of this machine that nothing uses."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def started(*commands):
    """Starts processes, and ends those that are left at the end."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    children = [subprocess.Popen(c, cwd=ROOT, env=ENVIRONMENT, **options) for c in commands]
    try:
        yield children
    finally:
        for child in children:
            child.kill()
            child.wait()
            child.stdout.close()
            child.stderr.close()


def wait(children):
    """Returns the exit status and standard error of each process."""
    texts = [child.communicate(timeout=SECONDS)[1] for child in children]
    return [(child.returncode, text) for child, text in zip(children, texts, strict=True)]


def train_elsewhere(*runs, processes=1):
    """Trains runs, lists of arguments, in processes; each but the first gets another workdir."""
    where = f"--coordinator=localhost:{free_port()}"

    def command(n):
        several = ["--distributed", where, f"--num_processes={processes}", f"--process_id={n}"]
        changed = [[*run, *several] if processes > 1 else run for run in runs]
        if n:
            changed = [[re.sub("(--workdir=.*)", r"\1-other", a) for a in run] for run in changed]
        return [sys.executable, "-c", TRAIN, json.dumps(changed)]

    with started(*map(command, range(processes))) as children:
        ended = wait(children)
    for status, text in ended:
        assert status == 0, text
    return [text for _, text in ended]


def state_of(workdir, config):
    """Returns the newest state of a run, as one process on one device reads it."""
    state = initial_state(prepare_run(config))
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return jax.device_get(checkpoints.restore(state))


def assert_close(found, wanted, message):
    """Compares arrays within 1e-5 of the largest number and the rounding of parameters near 0.3."""
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(wanted), jax.tree.leaves(found), strict=True
    ):
        atol = 1e-5 * np.abs(a).max() + 4e-8
        np.testing.assert_allclose(b, a, rtol=0, atol=atol, err_msg=f"{message} {path}")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Trains one run on one device, on 8 of one process, and on 4 of each of two processes."""
    folder = tmp_path_factory.mktemp("processes")
    rng = np.random.default_rng(0)
    splits = {"train": 30, "test": 10}
    images = {f"{n}_images": rng.integers(0, 256, (k, 18, 18), np.uint8) for n, k in splits.items()}
    labels = {f"{n}_labels": np.arange(k) % 10 for n, k in splits.items()}
    np.savez(folder / "noise.npz", **images, **labels)

    def arguments(name, steps, *more):
        own = (f"--dataset={folder / 'noise.npz'}", f"--workdir={folder / name}")
        return [*ONE_STEP, *own, f"--steps={steps}", *more]

    def train_here(*given):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(figures, "of_finished_run", lambda *_: [])
            return train(parse_mnist(*given))

    train_here(*arguments("1x1", 6, "--num_devices=1"))
    train_here(*arguments("continued", 3, "--num_devices=1"))
    train_elsewhere(arguments("1x8", 6, "--num_devices=8"))
    said, _ = train_elsewhere(
        arguments("2x4 jit", 6, "--num_devices=4"),
        arguments("2x4 shards", 6, "--num_devices=4", "--shard_optimizer", "--capsule_shards=2"),
        arguments("2x4 shard_map", 6, "--num_devices=4", "--parallel=shard_map"),
        arguments("2x4 grain", 6, "--num_devices=4", "--input=grain"),
        arguments("2x4 auto", 6, "--num_devices=4", "--input=auto"),
        arguments("continued", 6, "--num_devices=4"),
        processes=2,
    )
    assert said.count("read by Grain") == 2, said
    return folder, arguments, train_here


NAMES = ("1x8", "2x4 jit", "2x4 shards", "2x4 shard_map", "2x4 grain", "2x4 auto", "continued")


@pytest.mark.slow
def test_gradients_batches_and_metrics_are_those_of_one_device(runs):
    folder, arguments, _ = runs
    config = parse_mnist(*arguments("1x1", 6, "--num_devices=1"))
    initial = jax.device_get(initial_state(prepare_run(config)).params)
    one, rows = state_of(folder / "1x1", config), metrics_rows(folder / "1x1")
    gradient = jax.tree.map(np.subtract, initial, one.params)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradient))
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 6 and len(set(losses)) == 6  # batches can be told apart
    for name in NAMES:
        state = state_of(folder / name, config)
        assert_close(jax.tree.map(np.subtract, initial, state.params), gradient, name)
        assert_close(state.opt_state, one.opt_state, name)
        for found, wanted in zip(metrics_rows(folder / name), rows, strict=True):
            assert found == pytest.approx(wanted, rel=1e-5), name
        summaries = [read_json(folder / one / "summary.json") for one in ("1x1", name)]
        assert summaries[1]["test_loss"] == pytest.approx(summaries[0]["test_loss"], rel=1e-5)
        for field in ("test_correct", "test_examples", "steps", "validation_error"):
            assert summaries[1][field] == summaries[0][field], (name, field)


@pytest.mark.slow
def test_the_first_process_writes_one_set_of_files(runs):
    folder, *_ = runs

    def files(name):
        steps = {path.name for path in (folder / name / "checkpoints").iterdir()}
        return {path.name for path in (folder / name).iterdir()} - {".lock"}, steps

    for name in NAMES:
        assert files(name) == files("1x1"), name
    assert not list(folder.glob("*-other"))
    summary = read_json(folder / "2x4 jit" / "summary.json")
    assert (summary["num_devices"], summary["num_processes"]) == (8, 2)
    assert "distributed" not in summary["command"] and "localhost" not in summary["command"]


@pytest.mark.slow
def test_one_process_continues_the_run_of_two(runs):
    folder, arguments, train_here = runs
    for name in ("1x1", "2x4 jit"):
        train_here(*arguments(name, 8, "--num_devices=1"))
    rows = [metrics_rows(folder / name)[-3:] for name in ("1x1", "2x4 jit")]
    for found, wanted in zip(*rows, strict=True):
        assert found == pytest.approx(wanted, rel=1e-5)


def documented_commands(*more):
    """Returns the commands of the documentation for two processes, with a free port."""
    text = (ROOT / "docs" / "distributed.md").read_text()
    commands = re.findall(r"^python -m .*--coordinator=.*$", text, re.M)
    port = f"localhost:{free_port()}"
    words = [shlex.split(c.replace("localhost:9876", port))[1:] for c in commands]
    return [[sys.executable, *one, *more] for one in words]


def wait_for_checkpoint(workdir, step, children):
    """Waits until a run has saved the state after a step, or ended."""
    end = time.monotonic() + SECONDS
    while not (workdir / "checkpoints" / str(step)).exists():
        assert time.monotonic() < end
        assert all(child.poll() is None for child in children), wait(children)
        time.sleep(0.1)


@pytest.mark.slow
def test_the_documented_processes_are_killed_stopped_and_continued(tmp_path):
    workdir = tmp_path / "run"
    flags = ["--preset=tiny", "--train_examples=160", "--batch_size=16", "--steps=60"]
    flags += ["--log_every=2", "--validate_every=4", "--noreconstruction", "--num_devices=2"]
    more = [*flags, f"--workdir={workdir}", f"--cache_dir={tmp_path / 'cache'}"]
    for killed, step in ((1, 4), (0, 16)):
        with started(*documented_commands(*more)) as children:
            wait_for_checkpoint(workdir, step, children)
            children[killed].send_signal(signal.SIGKILL)
            killed_at = time.monotonic()
            left = children[1 - killed]
            text = left.communicate(timeout=SECONDS)[1]
            assert time.monotonic() - killed_at < 60
            assert left.returncode not in (0, None), text
            assert re.search(f"error: process {killed} of this run|another task died", text), text
    with started(*documented_commands(*more)) as children:
        wait_for_checkpoint(workdir, 28, children)
        children[1].send_signal(signal.SIGTERM)
        stopped = wait(children)
        assert [status for status, _ in stopped] == [128 + signal.SIGTERM] * 2, stopped
        assert "the same command continues" in stopped[0][1]
    with started(*documented_commands(*more)) as children:
        assert [status for status, _ in wait(children)] == [0, 0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "of_finished_run", lambda *_: [])
        flags[-1] = "--num_devices=1"
        train(parse_mnist("--dataset=digits", *flags, f"--workdir={tmp_path / 'one'}"))
    found, wanted = (metrics_rows(folder) for folder in (workdir, tmp_path / "one"))
    assert [row["step"] for row in found] == [row["step"] for row in wanted]
    losses = [[row["loss"] for row in rows if "loss" in row] for rows in (found, wanted)]
    # Adam enlarges the differences of rounding.
    np.testing.assert_allclose(*losses, rtol=0.02)


@pytest.mark.slow
def test_processes_with_other_flags_are_refused(tmp_path):
    more = ["--preset=tiny", f"--workdir={tmp_path / 'run'}", "--cache_dir=none"]
    commands = documented_commands(*more)
    with started(commands[0], [*commands[1], "--seed=3"]) as children:
        ended = wait(children)
    assert [status for status, _ in ended] == [2, 2]
    assert "process 1 has seed=3 and process 0 has seed=0" in ended[1][1]
    # Whichever comes first.
    said = "error: another process has other flags|error: process 1 of this run has ended"
    assert re.search(said, ended[0][1])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"process_id": 0}, "--process_id is one of several processes; add --distributed"),
        ({"distributed": True, "num_processes": 2}, "without --coordinator and --process_id"),
        ({"coordinator": "here", "num_processes": 2, "process_id": 0}, "--coordinator=here"),
        ({"coordinator": ":80", "num_processes": 2, "process_id": 0}, "--coordinator=:80"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 2}, "--process_id=2: 2 proc"),
    ],
)
def test_places_that_contradict_each_other_are_refused(flags, message):
    given = {"distributed": len(flags) > 1} | flags
    with pytest.raises(UserError, match=re.escape(message)):
        check_distribution(Distribution(**given))


def test_places_of_processes_are_legal():
    check_distribution(Distribution())
    check_distribution(Distribution(distributed=True))
    check_distribution(Distribution(True, "[::1]:9876", 2, 1))


def test_a_process_outside_of_a_cluster_is_told_what_is_missing():
    command = [sys.executable, "-m", "experiments.mnist", "--distributed", "--dataset=digits"]
    with started(command) as children:
        ((status, text),) = wait(children)
    assert status == 2 and text.count("\n") == 1, text
    assert "give --coordinator, --num_processes and --process_id" in text
