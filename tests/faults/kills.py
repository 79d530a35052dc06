"""Runs that are killed at random moments and continued: all bits are those of one left alone."""

import os
import random
import signal
import time
from functools import partial
from pathlib import Path

import processes

COUNT = 20
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def cases(scratch: Path, count: int = COUNT):
    """Yields names, and functions that return what is wrong or nothing."""
    cache, log = scratch / "cache", scratch / "log"
    log.mkdir()
    processes.train(log, scratch / "first", cache)  # compiles
    started = time.monotonic()
    ended = processes.train(log, scratch / "undisturbed", cache)
    seconds = time.monotonic() - started
    assert not ended.status, ended.err
    want, moments = processes.result(scratch / "undisturbed"), random.Random(0)
    for number in range(count):
        delay = moments.uniform(0.1, 1) * seconds
        workdir = scratch / f"kill{number}"
        yield f"SIGKILL {number}", partial(_killed, workdir, cache, log, delay, want)
    for number in SIGNALS:
        name = signal.Signals(number).name
        yield name, partial(_stopped, scratch / name, cache, log, number, want)
    yield "SIGINT twice", partial(_twice, scratch / "twice", cache, log)
    for delay in (0.1, 0.3, 0.6, 1.0, 1.5):
        yield (
            f"SIGINT twice, {delay} s after figures began",
            partial(_twice_in_figures, scratch / "undisturbed", cache, log, delay),
        )


def _start(workdir, cache, log):
    flags = (*processes.FLAGS, f"--workdir={workdir}", f"--cache_dir={cache}")
    return processes.start(log, "mnist", *flags)


def _again(workdir, cache, log, want):
    ended = processes.train(log, workdir, cache)
    if ended.status:
        return ended.err[-200:]
    return "" if processes.result(workdir) == want else "other bits"


def _killed(workdir, cache, log, delay, want):
    child = _start(workdir, cache, log)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return _again(workdir, cache, log, want)


def _after_rows(workdir, child, rows):
    """Waits until a run has written some rows of metrics.jsonl."""
    path, end = workdir / "metrics.jsonl", time.monotonic() + processes.SECONDS
    while time.monotonic() < end:
        if path.exists() and path.read_bytes().count(b"\n") >= rows:
            return
        time.sleep(0.002)


def _stopped(workdir, cache, log, number, want):
    child = _start(workdir, cache, log)
    _after_rows(workdir, child, 2)
    os.kill(child, number)
    ended = processes.wait(log, child)
    if ended.status not in (0, 128 + number) or "Traceback" in ended.err:
        return f"status {ended.status}: {ended.err[-200:]}"
    return _again(workdir, cache, log, want)


def _twice(workdir, cache, log):
    child = _start(workdir, cache, log)
    _after_rows(workdir, child, 1)
    return _interrupted(log, child)


def _twice_in_figures(workdir, cache, log, delay):
    flags = (f"--run={workdir}", f"--cache_dir={cache}", f"--output={log}", "--accelerator=cpu")
    child = processes.start(log, "figures", *flags)
    time.sleep(delay)
    return _interrupted(log, child)


def _interrupted(log, child):
    for _ in range(2):
        os.kill(child, signal.SIGINT)  # of a process that has ended, too, until it is waited for
        time.sleep(0.02)
    ended = processes.wait(log, child)
    fine = ended.status in (0, 130) and "Traceback" not in ended.err
    return "" if fine else f"status {ended.status}: {ended.err[-200:]}"
