"""Commands on Linux start themselves again with huge pages."""

import json
import os
import subprocess
import sys

import pytest
from helpers import ROOT

import experiments

COMMAND = (
    *(sys.executable, "-m", "experiments.benchmark", "--preset=tiny", "--batch_sizes=1"),
    *("--repetitions=1", "--nofirst_step", "--cache_dir=none"),
)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
@pytest.mark.parametrize("given, found", [(None, experiments.HUGE_PAGES), ("", "")])
def test_a_command_has_huge_pages_unless_told_otherwise(given, found):
    ours = (experiments.TUNABLES, experiments.STARTED_AGAIN)
    environment = {k: v for k, v in os.environ.items() if k not in ours}
    environment |= {} if given is None else {experiments.TUNABLES: given}
    done = subprocess.run(COMMAND, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["glibc_tunables"] == found


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
@pytest.mark.parametrize("name, found", [("benchmark", experiments.HUGE_PAGES), ("predict", None)])
def test_long_commands_of_an_installation_have_huge_pages(name, found, tmp_path):
    """The installed command starts again if that pays; here a module takes its place."""
    ours = (experiments.TUNABLES, experiments.STARTED_AGAIN)
    environment = {k: v for k, v in os.environ.items() if k not in ours}
    script = tmp_path / "capsjax"
    script.write_text(
        "import os, runpy, sys\nfrom capsjax.__main__ import main\n"
        "runpy.run_module = lambda *_, **__: print(sys.argv, os.environ.get('GLIBC_TUNABLES'))\n"
        "main()\n"
    )
    command = [sys.executable, str(script), name, "--flag=1"]
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{[f'capsjax {name}', '--flag=1']} {found}\n"


def test_only_its_own_variables_are_taken_back(monkeypatch):
    monkeypatch.setenv(experiments.TUNABLES, experiments.HUGE_PAGES)
    monkeypatch.delenv(experiments.STARTED_AGAIN, raising=False)
    assert experiments.inherited_environment() == dict(os.environ)
    monkeypatch.setenv(experiments.STARTED_AGAIN, "1")
    kept = experiments.inherited_environment()
    assert os.environ.keys() - kept.keys() == {experiments.TUNABLES, experiments.STARTED_AGAIN}


def test_starting_again_keeps_the_command(monkeypatch):
    started = []
    monkeypatch.setattr(experiments.sys, "platform", "linux")
    monkeypatch.setattr(experiments.sys, "orig_argv", ["python", "-X", "dev", "-m", "a.b", "--c"])
    monkeypatch.setattr(experiments.os, "execv", lambda *call: started.append(call))
    monkeypatch.setattr(experiments.os, "environ", {})
    experiments.take_huge_pages()
    experiments.take_huge_pages()  # which now has them
    assert started == [(sys.executable, [sys.executable, "-X", "dev", "-m", "a.b", "--c"])]
    assert experiments.os.environ.pop(experiments.TUNABLES) == experiments.HUGE_PAGES
    experiments.take_huge_pages()  # which something took back: once is enough
    assert len(started) == 1


def test_other_programs_are_not_started_again(tmp_path):
    """Only the commands are, not a program that imports them, nor one that calls them."""
    (tmp_path / "program").mkdir()
    (tmp_path / "program" / "__init__.py").write_text("print('started')\nimport experiments\n")
    call = "from experiments.__main__ import main\nmain(['no such command'])\n"
    (tmp_path / "program" / "__main__.py").write_text(call)
    ours = (experiments.TUNABLES, experiments.STARTED_AGAIN)
    environment = {k: v for k, v in os.environ.items() if k not in ours}
    environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{ROOT}"
    command = [sys.executable, "-m", "program"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "no command 'no such command'" in done.stderr
    assert done.stdout == "started\n"
