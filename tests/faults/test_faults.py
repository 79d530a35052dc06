"""A few cases of ``python -m tests.faults`` by default, and all of them as a slow test."""

import subprocess
import sys

import pytest
from helpers import ROOT


def run(*arguments):
    command = [sys.executable, "-m", "tests.faults", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_some_bad_inputs_are_refused():
    assert "| 7 | 7 |" in run("--only=inputs", "--shard=7/42")


@pytest.mark.slow
@pytest.mark.parametrize("part", ["kills", "damage", "inputs", "hostile"])
def test_everything(part):
    assert run(f"--only={part}").count("|") == 12
