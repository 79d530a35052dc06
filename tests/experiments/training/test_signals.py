"""Signals: the first one saves and stops, the second one ends the process at once."""

import os
import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT

from experiments.training import progress

SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"]


@pytest.mark.parametrize("name", SIGNALS)
def test_the_first_signal_is_a_request(name, monkeypatch):
    left = []
    monkeypatch.setattr(progress, "_leave_terminal", lambda: left.append(name))
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with progress.Stop() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        assert stop.requested == number
    assert signal.getsignal(number) == before and bool(left) == (name == "SIGHUP")


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with progress.Stop() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("name", SIGNALS)
def test_the_second_signal_ends_the_process_at_once(name):
    code = (
        "import os, signal\nfrom experiments.training import progress\nwith progress.Stop():\n"
        f" for _ in range(2):\n  os.kill(os.getpid(), signal.{name})\nprint('not reached')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 128 + getattr(signal, name) and not done.stdout
    assert done.stderr.endswith("interrupted\n") and "Traceback" not in done.stderr


def test_ctrl_c_during_imports_is_one_line():
    with subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "experiments.mnist", "--steps=0"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        for line in child.stderr:
            if "numpy" in line:  # in the middle of it
                child.send_signal(signal.SIGINT)
                break
        said = [line for line in child.stderr if not line.startswith("import time:")]
    assert child.returncode == 130 and said == ["interrupted\n"]
