"""Two checkouts of this repository, measured alternately: is the code faster or slower now?

The speed of a shared machine changes by more than most changes of the code, from one minute to the
next. Each round therefore starts the benchmark in both checkouts, one after the other and each time
in the other order, and what counts is the ratio within a round.
"""

import contextlib
import dataclasses
import json
import math
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments import inherited_environment
from experiments.benchmarks.measurement import summarize
from experiments.config import Config, UserError, given_flags
from experiments.plots.text_tables import markdown

ROOT = Path(__file__).resolve().parents[2]
COVERAGE = 0.95  # at least, of an interval, where there are six rounds or more
INNER = 3  # repetitions within a process
HEADINGS = ["network", "function", "pixels", "batch", "ratio", "interval", "here", "there"]
_KEYS = ("network", "function", "pixels", "batch_size")


@contextlib.contextmanager
def other_checkout(against: str) -> Iterator[tuple[Path, str]]:
    """Opens the checkout that ``--against`` names, and removes what it made, however it ends.

    Args:
      against: a folder, or whatever git takes for a commit, which is checked out into a temporary
        folder.

    Yields:
      Its folder, and its commit (``unknown`` for a folder without git).

    Raises:
      UserError: there is neither such a folder nor such a commit, or this is no clone.
    """
    folder = Path(against)
    if not (ROOT / ".git").exists():
        raise UserError("--against needs a clone of the repository; this is an installed copy")
    if folder.is_dir():
        if not (folder / "experiments" / "benchmark.py").is_file():
            raise UserError(f"--against={against} has no experiments/benchmark.py")
        found = _git("rev-parse", "HEAD", where=folder) if (folder / ".git").exists() else None
        yield folder.resolve(), found or "unknown"
        return
    commit = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{against}^{{commit}}")
    if not commit:
        raise UserError(f"--against={against} is neither a folder nor a commit of this clone")
    with _ended_by_exceptions(), tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "checkout"
        try:
            if _git("worktree", "add", "--detach", "--quiet", str(place), commit) is None:
                raise UserError(f"--against={against} can't be checked out by git worktree")
            yield place, commit
        finally:
            _git("worktree", "remove", "--force", str(place))


@contextlib.contextmanager
def _ended_by_exceptions() -> Iterator[None]:
    """Ends the process by an exception, as Ctrl-C does, where it is told to terminate."""

    def end(number, _):
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _git(*arguments: str, where: Path | None = None) -> str | None:
    """Returns what git prints in a folder or here, or None if it fails or is absent."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=where or ROOT, capture_output=True, text=True
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def compare(config: Config, defaults: Config) -> dict:
    """Measures both checkouts with the flags of this command.

    Args:
      config: of the benchmark; ``repetitions`` is the number of rounds.
      defaults: of the benchmark.

    Returns:
      The fields of a result. Rows hold the ratio of images per second, this checkout to the other:
      above one, this one is faster.

    Raises:
      UserError: see :func:`other_checkout`; or the benchmark fails in one of them.
    """
    arguments = _arguments(config, defaults)
    with other_checkout(config.against) as (folder, commit):
        sides = {"here": ROOT, "there": folder}
        rounds: list[dict[str, dict]] = []
        for number in range(config.repetitions):
            print(f"round {number + 1} of {config.repetitions} ...", file=sys.stderr)
            order = list(sides) if number % 2 == 0 else list(sides)[::-1]
            rounds.append({name: measure_side(sides[name], name, arguments) for name in order})
    last = rounds[-1]
    return {
        "program": config.program,
        "against": commit,
        "rounds": config.repetitions,
        "rows": ratios([{side: _rates(found) for side, found in pair.items()} for pair in rounds]),
        "matmul_gflops": {
            side: summarize([pair[side]["matmul_gflops"]["median"] for pair in rounds])
            for side in sides
        },
        "accelerator": last["here"]["accelerator"],
        "device_kind": last["here"]["device_kind"],
        "cpu_count": last["here"]["cpu_count"],
        "glibc_tunables": {side: last[side].get("glibc_tunables") for side in sides},
        "versions": {side: last[side]["versions"] for side in sides},
    }


def _arguments(config, defaults) -> list[str]:
    """Returns the flags that both checkouts are measured with."""
    own = {"against": "", "repetitions": INNER, "first_step": False, "output": ""}
    given = given_flags(dataclasses.replace(config, **own), defaults)
    if config.cache_dir:
        none = config.cache_dir == "none"
        given["cache_dir"] = "none" if none else Path(config.cache_dir).absolute()
    return [f"--{name}={value}" for name, value in given.items()]


def measure_side(folder: Path, name: str, arguments: list[str]) -> dict:
    """Runs the benchmark of a checkout in a process of its own, and returns its result.

    Raises:
      UserError: it fails, for example at a flag that an old checkout does not have.
    """
    command = [sys.executable, "-m", "experiments.benchmark", *arguments]
    # Each checkout starts as its users start it: this one takes huge pages by itself.
    environment = inherited_environment()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["no result"])[-1]
        raise UserError(f"the benchmark fails in the checkout {name}: {last}")
    return json.loads(lines[-1])


def _rates(result: dict) -> dict[tuple, float]:
    return {
        tuple(row[key] for key in _KEYS): row["images_per_second"]["median"]
        for row in result["rows"]
    }


def ratios(rounds: list[dict[str, dict[tuple, float]]]) -> list[dict[str, Any]]:
    """Returns one row for everything that both checkouts measured in every round.

    Args:
      rounds: of each, the images per second of ``here`` and ``there`` by what was measured.
    """
    measured = [rates.keys() for pair in rounds for rates in pair.values()]
    rows = []
    for what in (key for key in measured[0] if all(key in keys for keys in measured)):
        here, there = ([pair[side][what] for pair in rounds] for side in ("here", "there"))
        ratio = [a / b for a, b in zip(here, there)]
        low, high, coverage = interval(ratio)
        row = dict(zip(_KEYS, what)) | {"here": summarize(here), "there": summarize(there)}
        row["ratio"] = {"median": round(float(np.median(ratio)), 4)}
        row["ratio"] |= {"low": round(low, 4), "high": round(high, 4)}
        rows.append(row | {"coverage": round(coverage, 4)})
    return rows


def interval(values: list[float]) -> tuple[float, float, float]:
    r"""Returns an interval for the median, and its coverage, without a distribution.

    The k-th smallest and the k-th largest of n values enclose the median with probability
    :math:`1 - 2 \sum_{i < k} \binom{n}{i} / 2^n`. k is the largest for which that is at least
    :data:`COVERAGE`, or one. Conover (1999), "Practical Nonparametric Statistics", section 3.2.
    """
    ordered, n = sorted(values), len(values)

    def coverage(k):
        return 1 - 2 * sum(math.comb(n, i) for i in range(k)) / 2**n

    k = max((k for k in range(1, n // 2 + 1) if coverage(k) >= COVERAGE), default=1)
    return ordered[k - 1], ordered[n - k], max(coverage(k), 0.0)


def table(result: dict) -> str:
    """Returns the rows of a result as a table in Markdown."""

    def cells(row):
        yield from (row["network"], row["function"], str(row["pixels"]), str(row["batch_size"]))
        ratio = row["ratio"]
        yield from (f"{ratio['median']:.3f}", f"{ratio['low']:.3f} to {ratio['high']:.3f}")
        yield from (f"{row[side]['median']:.0f}" for side in ("here", "there"))

    text = markdown(HEADINGS, [list(cells(row)) for row in result["rows"]])
    covered = min((row["coverage"] for row in result["rows"]), default=0.0)
    return (
        f"{text}\n\nImages per second of this checkout relative to {result['against'][:12]}; "
        f"intervals cover the median with {100 * covered:.1f}%."
    )
