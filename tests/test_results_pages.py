"""The pages of results and the files of results/: each file has a page, and each number a file."""

import json
import re
from pathlib import PurePath

import pytest
from helpers import ROOT

RESULTS = ROOT / "results"
DOCS = ROOT / "docs"
PAGES = {path.stem: path.read_text() for path in sorted((DOCS / "results").glob("*.md"))}
TOPICS = sorted(set(PAGES) - {"index"})
EVERYWHERE = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md")))
    if "_build" not in path.parts
}
FILES = sorted(path for path in RESULTS.rglob("*") if path.is_file() and path.name != "README.md")
RUNS = [path for path in FILES if path.suffix in (".json", ".jsonl")]
# A file of results in a sentence or a link, written with its folder; * stands for several.
MENTION = re.compile(r"(?<![\w/])(?:\.\./)*results/(\w+/[\w.*-]*[\w*]\.(?:jsonl?|md|png))")
OF_THE_PAPER = {"0.34 ± 0.032", "0.29 ± 0.011", "0.35 ± 0.036", "0.25 ± 0.005"}
ORIGIN = {"command", "commit", "seed", "device_kind"}


def mentioned(text):
    """Returns the files of results that a text names, as patterns below results/."""
    pages = {f"results/{page}.md" for page in PAGES}
    return {name for name in MENTION.findall(text) if f"results/{name}" not in pages}


def records(path):
    """Returns the JSON object of a file, or those of its lines."""
    text = path.read_text()
    return [json.loads(line) for line in (text.splitlines() if path.suffix == ".jsonl" else [text])]


def name_of(path):
    return path.relative_to(RESULTS).as_posix()


def missing(record):
    """Returns which of :data:`ORIGIN` neither a record nor all parts of it have."""
    found = {name for name in ORIGIN if record.get(name) not in (None, "", [])}
    runs = record.get("runs") or [{}]
    found |= {"seed"} if all("seed" in run for run in runs) else set()
    rows = record.get("rows") or [{}]
    found |= {"device_kind"} if all("target" in row for row in rows) else set()
    return ORIGIN - found


def known_gaps():
    """Returns what files of older code lack, by pattern: the second table of results/README.md."""
    (table,) = re.findall(
        r"^\| files \| missing \| known \|\n\| -.*\n((?:\|.*\n)+)",
        (RESULTS / "README.md").read_text(),
        re.M,
    )
    gaps = {}
    for line in table.splitlines():
        files, names, known = (cell.strip() for cell in line.strip("|").split("|"))
        assert known, line
        for pattern in re.findall(r"`([^`]+)`", files):
            gaps[pattern] = set(re.findall(r"`(\w+)`", names))
    return gaps


def commits():
    found = set()
    for record in (record for path in RUNS for record in records(path)):
        commit = record["commit"]
        found |= {commit} if isinstance(commit, str) else set(commit)
        found |= {record["against"]} if "against" in record else set()
    return found


def test_folders_are_the_pages():
    assert sorted({name_of(path).split("/")[0] for path in FILES}) == TOPICS
    listed = re.findall(
        r"^\| `(\w+)/` \| \[.+\]\(\.\./docs/results/(\w+)\.md\) \|$",
        (RESULTS / "README.md").read_text(),
        re.M,
    )
    assert sorted(listed) == [(topic, topic) for topic in TOPICS]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_page_names_every_file(path):
    """Tables and figures may be named by the JSON file that they belong to."""
    topic, _ = name_of(path).split("/")
    names = mentioned(PAGES[topic])
    stems = [re.escape(name.partition(".json")[0]) for name in names if ".json" in name]
    own = any(PurePath(name_of(path)).match(name) for name in names)
    belongs = path.suffix in (".md", ".png") and any(
        re.fullmatch(rf"{stem}(_[a-z]+)?\.(md|png)", name_of(path)) for stem in stems
    )
    assert own or belongs


@pytest.mark.parametrize("page", EVERYWHERE)
def test_files_that_pages_name_exist(page):
    for name in mentioned(EVERYWHERE[page]):
        assert list(RESULTS.glob(name)), name


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_files_with_their_folder(page):
    """Otherwise nothing would check whether they exist."""
    of_a_run = {"summary.json", "config.json", "metrics.jsonl"}
    for name in re.findall(r"(?<![\w./*-])[\w.*-]+\.jsonl?\b", PAGES[page]):
        assert name in of_a_run, name


@pytest.mark.parametrize("path", RUNS, ids=name_of)
def test_a_file_says_where_it_comes_from(path):
    gaps = [names for files, names in known_gaps().items() if PurePath(name_of(path)).match(files)]
    assert len(gaps) <= 1
    for record in records(path):
        assert missing(record) == (gaps[0] if gaps else set())


def test_known_gaps_are_of_files_that_exist():
    for files in known_gaps():
        assert list(RESULTS.glob(files)), files


@pytest.mark.parametrize("page", PAGES)
def test_numbers_with_a_deviation_are_measured(page):
    tables = "".join(path.read_text() for path in FILES if path.suffix == ".md")
    for number in set(re.findall(r"\d+\.\d+ ± \d+\.\d+", PAGES[page])) - OF_THE_PAPER:
        assert number in tables, number


@pytest.mark.parametrize("page", PAGES)
def test_commits_are_those_of_the_files(page):
    for commit in re.findall(r"\b(?=[0-9a-f]*[a-f])(?=[0-9a-f]*\d)[0-9a-f]{7}\b", PAGES[page]):
        assert any(known.startswith(commit) for known in commits()), commit


@pytest.mark.parametrize("page", TOPICS)
def test_every_page_has_a_verdict_and_sources(page):
    assert "**Verdict.**" in PAGES[page] and "## Sources" in PAGES[page]


def test_headlines_have_a_verdict_and_an_interval():
    text = (ROOT / "README.md").read_text()
    (table,) = re.findall(r"^\| claim of the paper \|.*\n\| -.*\n((?:\|.*\n)+)", text, re.M)
    for line in table.splitlines():
        claim, _, interval, verdict = (cell.strip() for cell in line.strip("|").split("|"))
        assert verdict in {"reproduced", "not reproduced", "undecided"}
        page = re.match(r"\[.+\]\(docs/results/(\w+)\.md\)", claim)[1]
        for numbers in re.findall(r"[\d.]+ to [\d.]+", interval):
            assert numbers in PAGES[page], numbers


def test_single_runs_are_quoted_as_measured():
    """Errors of runs with one seed, with the files and pages that have them."""
    quoted = (
        "mnist/paper_20_epochs",
        "mnist/digits",
        "mnist/fashion_mnist_small",
        "multimnist/small_capsnet",
        "multimnist/small_cnn",
        "cifar10/first_10000_small_ensemble",
        "smallnorb/capsnet_20_epochs",
        "smallnorb/matrix_small_12_epochs",
        "routing_zoo/deep_self_no_pose_norm",
        "routing_zoo/deep_vb_no_pose_norm",
    )
    for name in quoted:
        error = json.loads((RESULTS / f"{name}.json").read_text())["test_error"]
        assert f"{error:.2f}" in PAGES[name.split("/")[0]], name
    for name in ("capsnet", "cnn"):
        summary = json.loads((RESULTS / "affnist" / f"small_{name}.json").read_text())
        for error in (summary["test_error"], summary["affnist_error"]):
            assert f"| {100 - error:.2f} |" in PAGES["affnist"]
