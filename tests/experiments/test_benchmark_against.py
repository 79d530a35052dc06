"""``benchmark --against``: two commits of a small repository whose benchmark prints given rates."""

import dataclasses
import itertools
import json
import math
import signal
import subprocess

import numpy as np
import pytest
from helpers import read_json, run_command

from experiments import benchmark
from experiments.benchmarks import against
from experiments.config import UserError

# The benchmark of a checkout: prints the rate in a file beside it, and notes how it was called.
STAND_IN = """
import json, pathlib, sys
rate = float(pathlib.Path("rate").read_text())
with open({log!r}, "a") as log:
    log.write(json.dumps([rate, sys.argv[1:]]) + "\\n")
if rate < 0:
    sys.exit("error: no such flag")
row = {{"network": "capsjax", "function": "training", "pixels": 28, "batch_size": 128}}
own = row | {{"function": f"of rate {{rate:.0f}}"}}
rows = [row, own]
for row in rows:
    row["images_per_second"] = {{"median": rate}}
print("noise", file=sys.stderr)
print(json.dumps({{"rows": rows, "matmul_gflops": {{"median": 100}}, "accelerator": "cpu",
                   "device_kind": "cpu", "cpu_count": 2, "versions": {{"jax": "1"}}}}))
"""


def git(where, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=where, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Returns a repository with commits of rates 100, -1 and 150, the last one checked out."""
    root = tmp_path / "repository"
    (root / "experiments").mkdir(parents=True)
    (root / "experiments" / "__init__.py").touch()
    (root / "experiments" / "benchmark.py").write_text(STAND_IN.format(log=str(tmp_path / "calls")))
    git(root, "init", "-q")
    for rate in (100, -1, 150):
        (root / "rate").write_text(str(rate))
        git(root, "add", ".")
        git(root, "commit", "-qm", f"rate {rate}")
    monkeypatch.setattr(against, "ROOT", root)
    return root


def config(**changes):
    return dataclasses.replace(benchmark.DEFAULTS, repetitions=2, preset="tiny", **changes)


def worktrees(root):
    return git(root, "worktree", "list").splitlines()


def calls(tmp_path):
    return [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]


def test_two_commits_are_measured_in_turns(repository, tmp_path, capsys):
    output = str(tmp_path / "guard")
    benchmark.compare(config(against="HEAD~2", output=output, batch_sizes="32,128"))
    found = read_json(tmp_path / "guard.json")
    assert json.loads(capsys.readouterr().out) == found
    assert found["against"] == git(repository, "rev-parse", "HEAD~2").strip()
    assert (found["seed"], found["device_kind"]) == (0, "cpu")
    row = found["rows"][0]
    assert row["ratio"] == {"median": 1.5, "low": 1.5, "high": 1.5}
    assert (row["here"]["median"], row["there"]["median"]) == (150, 100)
    assert len(found["rows"]) == 1, "only one function is measured in both"
    assert [rate for rate, _ in calls(tmp_path)] == [150, 100, 100, 150], "in alternate order"
    for _, arguments in calls(tmp_path):
        assert {"--preset=tiny", "--batch_sizes=32,128", "--first_step=False"} < set(arguments)
        assert not any("against" in argument or "output" in argument for argument in arguments)
    text = (tmp_path / "guard.json").read_text() + (tmp_path / "guard.md").read_text()
    assert f"--against={found['against'][:12]}" in text
    assert str(tmp_path) not in text and "/" not in text.replace("images/s", ""), "a path"
    assert worktrees(repository) == worktrees(repository)[:1]


def test_a_folder_is_measured_as_it_is(repository, tmp_path):
    other = tmp_path / "other"
    git(repository, "worktree", "add", "-q", "--detach", str(other), "HEAD~2")
    (other / "rate").write_text("75")
    found = against.compare(config(against=str(other)), benchmark.DEFAULTS)
    assert found["rows"][0]["ratio"]["median"] == 2
    assert found["against"] == git(repository, "rev-parse", "HEAD~2").strip()
    assert other.exists()


@pytest.mark.parametrize(
    "what, message",
    [
        ("no-such-commit", "--against=no-such-commit is neither a folder nor a commit"),
        ("--help", "--against=--help is neither"),
        ("HEAD~1", "the benchmark fails in the checkout there: error: no such flag"),
        ("experiments", "--against=experiments has no experiments/benchmark.py"),
    ],
)
def test_what_cannot_be_measured_is_said_and_leaves_nothing(what, message, repository, monkeypatch):
    monkeypatch.chdir(repository)
    with pytest.raises(UserError, match=message) as error:
        against.compare(config(against=what), benchmark.DEFAULTS)
    assert "\n" not in str(error.value)
    assert len(worktrees(repository)) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_removes_the_worktree(number, repository, monkeypatch):
    places = []

    def interrupted(folder, *_):
        places.append(folder)
        if folder != repository:
            assert (folder / "rate").read_text() == "100" and len(worktrees(repository)) == 2
            signal.raise_signal(number)

    monkeypatch.setattr(against, "measure_side", interrupted)
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit):
        against.compare(config(against="HEAD~2"), benchmark.DEFAULTS)
    assert len(places) == 2 and not places[1].exists()
    assert len(worktrees(repository)) == 1
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_wrong_commit_is_one_line():
    done = run_command("benchmark", "--against=no-such-commit")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: --against=no-such-commit is neither")


@pytest.mark.parametrize("n", [1, 2, 5, 6, 7, 9])
def test_intervals_cover_the_median_as_often_as_they_say(n):
    """Counts all 2^n ways in which n values can lie on the two sides of the median."""
    low, high, coverage = against.interval([float(x) for x in range(n)])
    k = round(low)
    assert high == n - 1 - k
    inside = 0
    for sides in itertools.product([0, 1], repeat=n):
        below = n - sum(sides)
        inside += k < below < n - k
    np.testing.assert_allclose(coverage, inside / 2**n)
    assert coverage >= 0.95 or k == 0
    assert n < 9 or k == 1, "the narrowest one that covers enough"
    assert math.isfinite(coverage)
