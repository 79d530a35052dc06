"""The commands and examples of README.md."""

import importlib
import re
import shlex
import subprocess
import sys
import venv

import numpy as np
import pytest
from absl import flags
from helpers import ROOT

from capsjax.routing import ROUTINGS, make_routing, route
from experiments.config.flags import define_flags

README = (ROOT / "README.md").read_text()
PROGRAMS = ("experiments", "kernels")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.S | re.M)


def program_calls():
    for block in blocks("sh"):
        for line in block.splitlines():
            for call in line.split("&&"):
                words = shlex.split(call, comments=True)
                if "-m" in words and words[words.index("-m") + 1].split(".")[0] in PROGRAMS:
                    yield words[words.index("-m") + 1 :]


def test_readme_has_commands():
    assert len(list(program_calls())) >= 5


@pytest.mark.parametrize("words", list(program_calls()), ids=" ".join)
def test_commands_parse(words):
    module, *arguments = words
    values = flags.FlagValues()
    program = importlib.import_module(module)
    if module == "experiments.sweep":  # whose flags depend on the program that it trains
        program.define_flags(arguments, values)
    elif hasattr(program, "PROGRAM"):
        define_flags(program.PROGRAM.defaults, values)
    elif hasattr(program, "DEFAULTS"):
        define_flags(program.DEFAULTS, values)
    else:  # of the kernels
        program.define_flags(values)
    words = values(["program", *arguments])[1:]
    assert not words or module == "experiments.predict"


@pytest.mark.parametrize("part", ["test", "aot"])
def test_the_ci_commands_are_the_readmes(part):
    pattern = rf"<!-- {part} -->\n```sh\n(.*?)```\n<!-- end -->"
    commands = re.search(pattern, README, re.S)[1]
    requirements = {"test": "requirements-dev.txt", "aot": "requirements-aot.txt"}[part]
    assert requirements in commands and "pytest" in commands
    assert part in (ROOT / ".ci" / "run").read_text()


def test_the_library_example_runs(capsys):
    example, _ = blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    assert "(8, 4, 16) (8, 24, 24, 3)" in capsys.readouterr().out


def test_custom_routing_example(capsys):
    """The example runs, streams, and equals dynamic routing if its memory is perfect."""
    _, example = blocks("python")
    names = {}
    before = dict(ROUTINGS)
    try:
        exec(compile(example, "README.md", "exec"), names)
        assert capsys.readouterr().out == "(2, 10)\n"
        forgetful, rng = (
            make_routing("forgetful", iterations=3, memory=1.0),
            np.random.default_rng(0),
        )
    finally:
        ROUTINGS.clear()
        ROUTINGS.update(before)
    u, W = (rng.normal(size=s).astype(np.float32) for s in ((2, 5, 4), (5, 3, 6, 4)))
    exact = route(make_routing("dynamic"), {}, u, W, implementation="naive")
    for implementation in ("naive", "stream"):
        out = route(forgetful, {}, u, W, implementation=implementation)
        np.testing.assert_allclose(out.pose, exact.pose, rtol=1e-5, atol=1e-6)
    forgets = route(names["forgetful"](3), {}, u, W, implementation="naive")
    assert abs(np.asarray(forgets.pose - exact.pose)).max() > 1e-3


@pytest.mark.slow
def test_the_wheel_is_capsjax_alone_and_runs_the_example_elsewhere(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, ROOT], check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True, system_site_packages=False)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", wheel], check=True)
    listing = subprocess.run(
        [python, "-m", "zipfile", "-l", wheel], capture_output=True, text=True, check=True
    ).stdout
    names = [line.split()[0] for line in listing.splitlines()[1:]]
    assert {name.split("/")[0].split("-")[0] for name in names} == {"capsjax"}
    (tmp_path / "example.py").write_text(blocks("python")[0])
    done = subprocess.run([python, "example.py"], cwd=tmp_path, capture_output=True, text=True)
    assert "(8, 4, 16) (8, 24, 24, 3)" in done.stdout, done.stderr


def test_every_routing_is_listed():
    for name, (_, line) in ROUTINGS.items():
        assert f"- `{name}`: {line}\n" in README
