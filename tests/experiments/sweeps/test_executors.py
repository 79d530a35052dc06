"""Executors: local processes and a Ray cluster, their order and their results."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from helpers import ROOT

from experiments.config import UserError
from experiments.sweeps import executors, ledger

SUMMARY = {"wall_seconds": 2.0, "together": 1}


def task(tmp_path, *names):
    rows = [{"key": name, "arguments": [], "workdir": str(tmp_path / name)} for name in names]
    return {"program": "mnist", "runs": rows, "folder": str(tmp_path)}


def finish(tmp_path, name):
    (tmp_path / name).mkdir(parents=True, exist_ok=True)
    (tmp_path / name / "summary.json").write_text(json.dumps(SUMMARY))


@pytest.fixture
def child(monkeypatch):
    """Replaces the process by a function of the log's folder."""

    def use(function):
        monkeypatch.setattr(executors, "_child", lambda job, log, started: function(log.parent))

    return use


def test_finished_runs_are_not_repeated(tmp_path, child):
    child(None)
    finish(tmp_path, "a")
    assert executors.perform(task(tmp_path, "a")) == [ledger.success("a", SUMMARY, 1)]


def test_last_line_of_the_log_is_the_error(tmp_path, child):
    def fail(folder):
        (folder / "log.txt").write_text("much\nerror: this\n")
        return 2

    child(fail)
    (entry,) = executors.perform(task(tmp_path, "a"))
    assert entry == ledger.failure("a", "error: this (exit status 2)")
    child(lambda folder: finish(tmp_path, "a") or 0)
    assert "error" not in executors.perform(task(tmp_path, "a"))[0]
    assert not (tmp_path / "a" / "error.txt").exists()


def test_each_run_of_a_group_has_its_own_result(tmp_path, child):
    def some(folder):
        finish(tmp_path, "a")
        (tmp_path / "b" / "error.txt").write_text("error: nan\n")
        return 0

    child(some)
    assert executors.perform(task(tmp_path, "a", "b", "c")) == [
        ledger.success("a", SUMMARY, 1),
        ledger.failure("b", "error: nan"),
    ]
    child(lambda folder: 1)
    assert executors.perform(task(tmp_path, "d", "e")) == [], "each is to be tried alone"


def test_several_processes_at_once(tmp_path, child):
    barrier = threading.Barrier(2, timeout=20)

    def meet(folder):
        barrier.wait()
        finish(tmp_path, folder.name)
        return 0

    child(meet)
    tasks = [task(tmp_path, name) for name in "abcd"]
    found = [entry["key"] for (entry,) in executors.local(tasks, 2)]
    assert sorted(found) == list("abcd")


def test_a_run_without_a_summary_was_stopped_by_the_clock(tmp_path, child):
    child(lambda folder: 0)
    assert executors.perform(task(tmp_path, "a")) == []
    assert not (tmp_path / "a" / "error.txt").exists()
    child(lambda folder: (folder / "summary.json").write_text("{") and 0)
    (entry,) = executors.perform(task(tmp_path, "b"))
    assert entry == ledger.failure("b", "no message (exit status 0)")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_interrupted_processes_are_signaled_once_and_awaited(tmp_path, monkeypatch, name):
    number = getattr(signal, name)
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)]
    saved = tmp_path / "saved"
    code = (
        f"import pathlib, signal, sys, time\n"
        f"def stop(*_):\n    time.sleep(0.5); pathlib.Path({str(saved)!r}).write_text('x')\n"
        f"    sys.exit(130)\n"
        f"signal.signal(signal.SIGINT, stop)\n"
        f"pathlib.Path({str(tmp_path / 'started')!r}).write_text('')\ntime.sleep(60)\n"
    )

    def child(job, log, started):
        process = subprocess.Popen([sys.executable, "-c", code])
        started(process)
        return process.wait()

    monkeypatch.setattr(executors, "_child", child)

    def interrupt():
        while not (tmp_path / "started").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)  # as a terminal does, to the main thread

    # Tests that a shell started in the background ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        thread = threading.Timer(0, interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            list(executors.local([task(tmp_path, "a")], 1))
        assert saved.exists()
        thread.join()
        assert handlers == [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)]
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_worker_ends_with_its_parent(tmp_path):
    """Closing its standard input, as the death of its parent does, ends a worker."""
    arguments = [
        "--dataset=digits",
        "--preset=tiny",
        "--batch_size=8",
        "--accelerator=cpu",
        "--cache_dir=none",
        "--epochs=100",
        f"--workdir={tmp_path / 'run'}",
    ]
    job = json.dumps({"program": "mnist", "runs": [arguments]})
    worker = subprocess.Popen(
        [sys.executable, "-m", "experiments.sweeps.worker"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    worker.stdin.write(job + "\n")
    worker.stdin.flush()
    while not (tmp_path / "run" / "config.json").exists():
        assert worker.poll() is None, worker.stderr.read()
        time.sleep(0.1)
    worker.stdin.close()
    assert worker.wait(20) == 1
    worker.stderr.close()


def test_ray_is_optional(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="pip install -r requirements-ray.txt"):
        list(executors.on_ray([], 1))


@pytest.mark.filterwarnings("ignore")
def test_a_local_ray_cluster_of_two_workers(tmp_path):
    ray = pytest.importorskip("ray")
    for name in "ab":
        finish(tmp_path, name)
    bad = task(tmp_path, "c")
    bad["runs"][0]["arguments"] = ["--no_such_flag=1"]
    try:
        found = list(executors.on_ray([task(tmp_path, "a"), task(tmp_path, "b"), bad], 2))
        assert ray.cluster_resources()["CPU"] == 2
    finally:
        ray.shutdown()
    entries = {entry["key"]: entry for (entry,) in found}
    assert entries["a"] == ledger.success("a", SUMMARY, 1) and "summary" in entries["b"]
    assert "no_such_flag" in entries["c"]["error"]
