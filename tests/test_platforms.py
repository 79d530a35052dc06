"""Stand-ins for systems that lack modules: Windows and macOS."""

import subprocess
import sys

import pytest
from helpers import ROOT

# filelock and psutil are imported first because here they use the modules that are taken away.
STAND_IN = """
import sys, filelock, psutil, runpy
for name in {missing}:
    sys.modules[name] = None
sys.argv[1:] = {arguments}
runpy.run_module("experiments.{command}", run_name="__main__", alter_sys=True)
"""
MISSING = {
    "Windows": ["fcntl", "resource", "pwd", "grp", "termios", "array_record"],
    "macOS": ["array_record", "tensorflow"],
}

SYSTEMS = (
    "x86_64-unknown-linux-gnu",
    "aarch64-unknown-linux-gnu",
    "x86_64-pc-windows-msvc",
    "aarch64-apple-darwin",
)
# Projects that are compiled for each system; a version without a wheel for it is no solution.
COMPILED = "jaxlib tensorflow tensorflow-cpu array_record numpy scipy h5py grpcio protobuf".split()


def run(platform, folder, command, *arguments):
    flags = ["--dataset=digits", "--preset=tiny", "--accelerator=cpu", "--cache_dir=none"]
    values = {"missing": MISSING[platform], "arguments": [*flags, *arguments], "command": command}
    done = subprocess.run(
        [sys.executable, "-c", STAND_IN.format(**values)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize(
    "platform", [p if p == "Windows" else pytest.param(p, marks=pytest.mark.slow) for p in MISSING]
)
def test_the_digits_train_to_the_end(platform, tmp_path):
    run(platform, tmp_path, "mnist", "--steps=2", f"--workdir={tmp_path}")
    assert (tmp_path / "summary.json").exists()


@pytest.mark.slow
def test_a_sweep_keeps_its_ledger_on_windows(tmp_path):
    run("Windows", tmp_path, "sweep", "--steps=2", "--grid=seed=0..1", f"--runs={tmp_path}")
    assert (tmp_path / "ledger.jsonl").read_text().count("\n") == 2


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_requirements_can_be_satisfied(system, python):
    wheels = [option for name in COMPILED for option in ("--only-binary", name)]
    where = ["--python-platform", system, "--python-version", python]
    command = [sys.executable, "-m", "uv", "pip", "compile", "-q", *wheels, *where]
    done = subprocess.run([*command, "requirements.txt"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "\njaxlib==0.1" in done.stdout
    assert ("array-record==" in done.stdout) == ("windows" not in system)
