"""The pages of results: their numbers, files and commits are those of results/."""

import json
import re

import pytest
from helpers import ROOT

RESULTS = ROOT / "results"
PAGES = {path.stem: path.read_text() for path in sorted((ROOT / "docs" / "results").glob("*.md"))}
TABLES = "".join(path.read_text() for path in RESULTS.glob("*_*.md"))
TABLES += "".join(path.read_text() for path in RESULTS.glob("d*.md"))
OF_THE_PAPER = {"0.34 ± 0.032", "0.29 ± 0.011", "0.35 ± 0.036", "0.25 ± 0.005"}


def commits():
    found = set()
    for path in RESULTS.glob("*.json"):
        commit = json.loads(path.read_text())["commit"]
        found |= {commit} if isinstance(commit, str) else set(commit)
    for path in RESULTS.glob("*.jsonl"):
        found |= {json.loads(line)["commit"] for line in path.read_text().splitlines()}
    return found


@pytest.mark.parametrize("page", PAGES)
def test_numbers_with_a_deviation_are_measured(page):
    for number in set(re.findall(r"\d+\.\d+ ± \d+\.\d+", PAGES[page])) - OF_THE_PAPER:
        assert number in TABLES, number


@pytest.mark.parametrize("page", PAGES)
def test_commits_are_those_of_the_files(page):
    for commit in re.findall(r"\b(?=[0-9a-f]*[a-f])(?=[0-9a-f]*\d)[0-9a-f]{7}\b", PAGES[page]):
        assert any(known.startswith(commit) for known in commits()), commit


@pytest.mark.parametrize("page", PAGES)
def test_pictures_exist(page):
    for picture in re.findall(r"\]\(\.\./\.\./results/([^)]+)\)", PAGES[page]):
        assert (RESULTS / picture).is_file(), picture


@pytest.mark.parametrize("page", sorted(set(PAGES) - {"index"}))
def test_every_page_has_a_verdict_and_sources(page):
    assert "**Verdict.**" in PAGES[page] and "## Sources" in PAGES[page]


def test_single_runs_are_quoted_as_measured():
    """Errors of runs with one seed, with the pages that quote them."""
    quoted = {
        "mnist_paper_5_epochs": "table1",
        "digits_paper": "table1",
        "fashion_mnist_small": "table1",
        "mnist_multimnist_small_capsnet": "multimnist",
        "mnist_multimnist_small_cnn": "multimnist",
        "digits_deep_self_no_pose_norm": "routing_zoo",
        "digits_deep_vb_no_pose_norm": "routing_zoo",
    }
    for name, page in quoted.items():
        error = json.loads((RESULTS / f"{name}.json").read_text())["test_error"]
        assert f"{error:.2f}" in PAGES[page], name
    for name in ("capsnet", "cnn"):
        summary = json.loads((RESULTS / f"mnist_affnist_small_{name}.json").read_text())
        for error in (summary["test_error"], summary["affnist_error"]):
            assert f"| {100 - error:.2f} |" in PAGES["affnist"]


def test_every_file_of_results_is_listed():
    listed = (RESULTS / "README.md").read_text()
    names = re.findall(r"[\w*]+", listed)
    prefixes = [name.strip("*") for name in names if name.endswith("*")]
    for path in RESULTS.glob("*.json*"):
        assert path.stem.split(".")[0] in names or path.stem.startswith(
            (*prefixes, "mnist_multimnist_small", "mnist_affnist_small")
        ), path.name
