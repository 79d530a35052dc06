"""The commands and examples of README.md and of the pages in docs/."""

import contextlib
import functools
import importlib
import io
import re
import shlex
import tempfile

import numpy as np
import pytest
from absl import flags
from helpers import ROOT

from capsjax.routing import ROUTINGS, make_routing, route
from experiments.config.flags import define_flags

README = (ROOT / "README.md").read_text()
# Notebooks run when the documentation is built.
DOCS = [p for p in sorted((ROOT / "docs").rglob("*.md")) if "notebooks" not in p.parts]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS)
    if "_build" not in path.parts
}
PROGRAMS = ("experiments", "kernels")
# A command in a sentence.
INLINE = re.compile(r"(?<!`)`((?:python -m|capsjax) [^`]+)`(?!`)")
CONSOLE = re.compile(r"^\$ (.*)$", re.M)
# What stands for a value of the reader's own, and a legal value.
EXAMPLES = {"uniform,forgetful": "uniform", "=TARGET": "=h200", "=PROBLEM": "=tiny"}
# The arguments that are not flags; all other commands have none.
WORDS = {"experiments.predict", "experiments.vote", "experiments.compare"}


def blocks(language, text=README):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


def program_calls():
    """Returns the calls of programs in all pages: a module and its arguments each."""
    found = {}
    for text in PAGES.values():
        lines = "".join(blocks("sh", text)).splitlines()
        for line in lines + INLINE.findall(text) + CONSOLE.findall(text):
            for call in " ".join(line.split()).split("&&"):
                words = shlex.split(call, comments=True)
                if words[:1] == ["capsjax"] and len(words) > 1 and not words[1].startswith("-"):
                    words = ["-m", f"experiments.{words[1]}", *words[2:]]
                if "-m" in words and words[words.index("-m") + 1].split(".")[0] in PROGRAMS:
                    module, *arguments = words[words.index("-m") + 1 :]
                    if "..." not in arguments and not module.endswith("NAME"):
                        found[" ".join([module, *arguments])] = [module, *arguments]
    return found


def flags_of(module, arguments):
    """Returns the flags of a command that is called with these arguments."""
    values, program = flags.FlagValues(), importlib.import_module(module)
    if module == "experiments.sweep":  # whose flags depend on the program that it trains
        program.define_flags(arguments, values)
    elif hasattr(program, "PROGRAM"):
        define_flags(program.PROGRAM.defaults, values)
    elif hasattr(program, "DEFAULTS"):
        define_flags(program.DEFAULTS, values)
    else:  # of the kernels
        program.define_flags(values)
    return values


def test_pages_have_commands():
    assert len(program_calls()) >= 40
    assert {"README.md", "docs/results/mnist.md"} <= set(PAGES)


@pytest.mark.parametrize("name", program_calls())
def test_commands_parse(name):
    module, *arguments = program_calls()[name]
    for word, value in EXAMPLES.items():
        arguments = [argument.replace(word, value) for argument in arguments]
    words = flags_of(module, arguments)(["program", *arguments])[1:]
    assert not words or module in WORDS


def test_flags_in_sentences_exist():
    commands = [p.stem for p in (ROOT / "experiments").glob("*.py") if not p.stem.startswith("_")]
    known = {"help", "version", "only", "shard", "match"}  # the last three of tests.faults
    for module in (*(f"experiments.{name}" for name in commands), "kernels.bench", "kernels.aot"):
        known |= set(flags_of(module, []))
    for page, text in PAGES.items():
        for name in re.findall(r"`--([a-z_]+)(?=[=`\s])", text):
            assert name in known or name.removeprefix("no") in known, f"{page}: --{name}"


@pytest.mark.parametrize("part", ["test", "aot"])
def test_the_ci_commands_are_the_readmes(part):
    pattern = rf"<!-- {part} -->\n```sh\n(.*?)```\n<!-- end -->"
    commands = re.search(pattern, README, re.S)[1]
    requirements = {"test": "requirements-dev.txt", "aot": "requirements-aot.txt"}[part]
    assert requirements in commands and "pytest" in commands
    assert part in (ROOT / ".ci" / "run").read_text()


@functools.cache
def run_page(page):
    """Runs the Python blocks of a page, one after another in a folder of their own.

    Returns the names that they define, and what they print.
    """
    names, printed, before = {"__name__": page}, io.StringIO(), dict(ROUTINGS)
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.chdir(folder),
            contextlib.redirect_stdout(printed),
        ):
            for block in blocks("python", PAGES[page]):
                exec(compile(block, page, "exec"), names)
    finally:
        ROUTINGS.clear()
        ROUTINGS.update(before)
    return names, printed.getvalue()


@pytest.mark.parametrize("page", [page for page in PAGES if blocks("python", PAGES[page])])
def test_python_blocks_run(page):
    run_page(page)


def test_the_library_example_prints_what_it_should():
    _, printed = run_page("README.md")
    assert "(8, 4, 16) (8, 24, 24, 3)" in printed


def test_digits_are_recognized_as_the_page_says():
    names, printed = run_page("docs/getting_started.md")
    assert float(printed.splitlines()[0]) > 0.9
    assert names["found"].classes.shape == (360,)


def test_custom_routing_example():
    """The example streams, and equals dynamic routing if its memory is perfect."""
    names, _ = run_page("docs/writing_a_routing.md")
    rng = np.random.default_rng(0)
    u, W = (rng.normal(size=s).astype(np.float32) for s in ((2, 5, 4), (5, 3, 6, 4)))
    exact = route(make_routing("dynamic"), {}, u, W, implementation="naive")
    remembers = names["forgetful"](3, memory=1.0)
    for implementation in ("naive", "stream"):
        out = route(remembers, {}, u, W, implementation=implementation)
        np.testing.assert_allclose(out.pose, exact.pose, rtol=1e-5, atol=1e-6)
    forgets = route(names["forgetful"](3), {}, u, W, implementation="naive")
    assert abs(np.asarray(forgets.pose - exact.pose)).max() > 1e-3


def test_every_routing_has_a_measured_row():
    for name in ROUTINGS:
        assert f"| {name} | " in PAGES["docs/results/routing_zoo.md"]


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "results/README.md"])
def test_links_lead_to_files(page):
    """Links between pages in docs/ are checked when the documentation is built."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text())
    assert links
    for link in links:
        assert (ROOT / page).parent.joinpath(link).exists(), link


def test_readme_is_short():
    assert len(README.splitlines()) <= 150
