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


def run_command(lines):
    """Runs a command whose body is some lines, in a process of its own."""
    code = "import os, signal, time\nfrom kernels import cli\ndef main():\n" + "".join(
        f"  {line}\n" for line in lines
    )
    code += "cli.run(main)"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


INTERRUPT = "os.kill(os.getpid(), signal.SIGINT); time.sleep(9)"


def test_the_second_ctrl_c_of_a_command_ends_it_at_once():
    # While what the first one began is being tidied up, as when figures are drawn.
    done = run_command([f"try:    {INTERRUPT}", f"finally:    {INTERRUPT}"])
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_ctrl_c_where_no_exception_can_be_raised_ends_the_command():
    done = run_command(
        ["class A:", f"  def __del__(self):    {INTERRUPT}", "A()", "print('not reached')"]
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_ctrl_c_while_the_installed_command_imports_is_one_line():
    code = (
        "import os, runpy, signal\nfrom experiments import __main__ as command\n"
        "runpy.run_module = lambda *a, **k: os.kill(os.getpid(), signal.SIGINT)\n"
        "command.main(['mnist'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
