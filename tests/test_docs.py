"""The documentation names what exists: objects, commands, algorithms, measured numbers."""

import importlib
import inspect
import itertools
import json
import os
import re
import subprocess
import sys

import pytest
from helpers import ROOT

import capsjax
import capsjax.routing
from capsjax.routing import ROUTINGS
from capsjax.squash import SQUASHES
from capsjax.votes import VOTES
from kernels import api

DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    *(p for p in sorted(DOCS.rglob("*.md")) if "_build" not in p.parts),
]
API = {p.stem: p.read_text() for p in sorted((DOCS / "api").glob("*.md"))}
DESCRIBED = re.compile(
    r"^\.\. (?:autofunction|autoclass|autoexception|py:data):: ([a-z][\w.]+)$", re.M
)


def described():
    """Returns every object that an API page describes by its name; None if there is none."""
    found = {}
    for name in (name for page in API.values() for name in DESCRIBED.findall(page)):
        module, _, last = name.rpartition(".")
        found[name] = getattr(importlib.import_module(module), last, None)
    return found


def public():
    for module in (capsjax, capsjax.routing):
        yield from ((f"{module.__name__}.{name}", getattr(module, name)) for name in module.__all__)
    for name, value in vars(api).items():
        own = getattr(value, "__module__", "kernels.api") == "kernels.api"
        if own and not name.startswith("_") and not inspect.ismodule(value):
            yield f"kernels.api.{name}", value


def test_every_public_name_is_described():
    found = described()
    missing = [n for n, x in public() if n not in found and not any(x is y for y in found.values())]
    assert not missing


def test_described_names_exist_and_are_described_once():
    names = [name for page in API.values() for name in DESCRIBED.findall(page)]
    assert len(names) > 100
    assert [name for name, value in described().items() if value is None] == []
    assert sorted(names) == sorted(set(names))


def test_every_algorithm_has_a_section_and_a_row():
    page = (DOCS / "routing_algorithms.md").read_text()
    headings = re.findall(r"^### (.+)$", page, re.M)
    for name in ROUTINGS:
        assert sum(name in heading.split() for heading in headings) == 1, name
        assert re.search(rf"^\| \[{name}\]\(#", page, re.M), name


def test_every_squash_and_kind_of_votes_is_explained():
    page = (DOCS / "routing_algorithms.md").read_text()
    assert not [name for name in (*SQUASHES, *VOTES) if f"`{name}`" not in page]


def test_the_glossary_has_the_letters():
    page = (DOCS / "glossary.md").read_text()
    assert all(f"\n| {letter} | " in page for letter in "BIJKDRS")


def scripts(folder):
    """Writes the files of the page about routings of one's own, and returns their names."""
    page = (DOCS / "writing_a_routing.md").read_text()
    blocks = re.findall(
        r"^```\{code-block\} python\n:caption: (\S+)\n\n(.*?)^```", page, re.S | re.M
    )
    for name, text in blocks:
        (folder / name).write_text(text)
    (functions,) = re.findall(r"^```python\n(import capsjax\n.*?)^```", page, re.S | re.M)
    line = 'capsjax.ROUTINGS["forgetful"] = (forgetful, "dynamic routing that forgets")\n'
    assert line in page
    (folder / "my_routing.py").write_text(functions + line)
    return [name for name, _ in blocks]


def run_script(folder, name, *arguments):
    return subprocess.run(
        [sys.executable, name, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )


def test_a_script_gives_commands_a_routing_of_ones_own(tmp_path):
    script, compare = scripts(tmp_path)
    assert (script, compare) == ("with_my_routing.py", "compare.py")
    absent = "--dataset=absent.npz"
    done = run_script(tmp_path, script, "mnist", "--routing=forgetful", absent)
    assert done.returncode == 2 and "absent.npz" in done.stderr
    done = run_script(tmp_path, script, "mnist", "--routing=forgetfull", absent)
    assert "did you mean forgetful" in done.stderr


@pytest.mark.slow
def test_a_script_compares_a_routing_of_ones_own(tmp_path):
    scripts(tmp_path)
    text = (tmp_path / "compare.py").read_text()
    assert '"--preset=small"' in text
    text = text.replace('"--preset=small"', '"--preset=tiny", "--steps=2"').replace(
        "range(3)", "[0]"
    )
    (tmp_path / "compare.py").write_text(text)
    done = run_script(tmp_path, "compare.py")
    assert len(re.findall(r"^\w+ +seed 0: \d+\.\d\d%$", done.stdout, re.M)) == 3, done.stderr


def test_memory_is_that_of_the_compilers():
    page = (DOCS / "kernels.md").read_text()
    titles = {"tpu_v5e": "TPU v5e", "h200": "H200", "mnist": "MNIST", "cifar": "CIFAR-10"}
    for target, network in itertools.product(("tpu_v5e", "h200"), ("mnist", "cifar")):
        path = ROOT / "results" / "speed" / f"aot_{target}_{network}_b128.json"
        rows = json.loads(path.read_text())["rows"]
        rows = [row for row in rows if row["function"] == "routing, gradients"]
        assert [row["implementation"] for row in rows] == ["naive", "stream", "pallas"]
        measured = [row[name] for name in ("temporaries", "accessed") for row in rows]
        (line,) = re.findall(rf"^\| {titles[target]}, {titles[network]} \|(.*)\|$", page, re.M)
        shown = [cell.strip().replace(",", "") for cell in line.split("|")]
        for cell, value in zip(shown, measured, strict=True):
            digits = 1 if "." in cell else 0
            assert cell == ("" if value is None else f"{value / 1e6:.{digits}f}")


def test_times_are_those_of_the_benchmark():
    page = (DOCS / "routing_without_votes.md").read_text()
    titles = {"mnist_b1": "one image", "mnist_b128": "128 images"}
    titles |= {"routing": "routing", "routing, gradients": "with gradients"}
    lines = (ROOT / "results" / "speed" / "kernels_cpu_python3.12.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["function"] in titles]
    assert len(rows) == 8
    for row in rows:
        title = f"{titles[row['problem']]}, {titles[row['function']]}"
        (cells,) = re.findall(rf"^\| {title} \| (\S+) \| (\S+) \|$", page, re.M)
        shown = cells[("naive", "stream").index(row["implementation"])]
        digits = len(shown.partition(".")[2])
        assert shown == f"{row['milliseconds']['median']:.{digits}f}"


def test_ci_builds_the_documentation():
    page = (DOCS / "development.md").read_text()
    command = re.search(r"<!-- docs -->\n```sh\n(.*?)```\n<!-- end -->", page, re.S)[1]
    assert "requirements-docs.txt" in command and "sphinx -W -n" in command
    assert "docs/development.md" in (ROOT / ".ci" / "run").read_text()
