"""Tables of a study, computed from the ledger: their rows, and the text of their cells."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.files.bits import unpack
from experiments.sweeps.plan import PlannedRun
from experiments.sweeps.statistics import Comparison, Interval, compare, corrected, of_mean, of_rate
from experiments.sweeps.studies import Study

NOTE = (
    "Mean and standard deviation over seeds. 95% intervals: Student's t over seeds; of a single "
    "run Wilson's, which knows nothing of other seeds. Against the first row: difference of the "
    "mean over the same seeds; p of the exact sign test (with one seed McNemar's) of the test "
    "images on which one row is right for more seeds than the other, each image counted once "
    "however many seeds; Holm's correction over the rows. better or worse: p < 0.05, and the "
    "difference over seeds is not zero with 95% confidence. Rows whose test images are others than "
    "those of the first row are not compared. Time is that of one run; runs trained "
    "together share theirs equally."
)
EXTRA_NOTE = (
    "Of further columns: the difference is the mean over the same seeds, with Student's 95% "
    "interval in brackets, not corrected for the number of rows."
)


class Row(NamedTuple):
    """Results of the runs of a row; medians unless another statistic is named."""

    names: tuple[str, ...]  # of the row, a cell for each of its columns
    errors: dict[str, float]  # test error of every seed, %
    interval: Interval  # of their mean, %
    validation: float | None  # mean error, %
    parameters: int
    seconds: float  # of a run
    images_per_second: float
    peak_memory_mb: float
    steps: int
    extra_columns: dict[str, dict[str, float]]  # by heading and seed
    comparison: Comparison | None = None  # with the first row

    @property
    def mean(self) -> float:
        """Mean test error over seeds."""
        return float(np.mean(list(self.errors.values())))

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the test error over seeds; None for a single seed."""
        return _deviation(self.errors)


def name_headings(study: Study) -> tuple[str, ...]:
    """Returns the headings of the columns that name a row."""
    return study.axes or ("row",)


def rows(
    study: Study,
    runs: list[PlannedRun],
    entries: dict[str, dict],
    extra_columns: dict[str, dict] | None = None,
) -> list[list[Row]]:
    """Returns the tables of a study: one, or one for every value of ``study.group_by``.

    Runs that are missing or failed are omitted. If the first row has no runs, nothing is compared,
    and no row with other test images than it.

    Args:
      study: whose rows these are.
      runs: of the study.
      entries: of the ledger.
      extra_columns: numbers by key of the run and heading.
    """
    groups: dict[str, list[str]] = {}
    for name, point in study.rows.items():
        groups.setdefault(point.get(study.group_by, ""), []).append(name)
    found = []
    for names in groups.values():
        done = {name: _finished(name, runs, entries) for name in names}
        table = [_row(study, name, done[name], extra_columns or {}) for name in names if done[name]]
        reference = _correct(done[names[0]])
        pairs = [
            compare(_correct(done[name]), reference)
            if _test_set(name, runs) == _test_set(names[0], runs)
            else None
            for name in names[1:]
            if done[name]
        ]
        first = [None] * bool(done[names[0]])
        known = iter(corrected([pair for pair in pairs if pair]))
        compared = first + [pair and next(known) for pair in pairs]
        found.append([row._replace(comparison=c) for row, c in zip(table, compared, strict=True)])
    return [table for table in found if table]


def _finished(name: str, runs: list[PlannedRun], entries: dict[str, dict]) -> dict[str, dict]:
    """Returns the entries of the runs of a row that succeeded, by seed."""
    planned = (run for run in runs if run.row == name)
    return {r.seed: entries[r.key] for r in planned if "summary" in entries.get(r.key, {})}


def _test_set(name: str, runs: list[PlannedRun]) -> set[tuple]:
    """Returns the values of the flags that decide which test images the runs of a row have.

    Images of another size are the same images. The last flags are those of single programs.
    """
    flags = ("dataset", "test_fraction", "split_seed", "shift", "test_pairs", "placement")
    return {tuple(getattr(r.config, flag, None) for flag in flags) for r in runs if r.row == name}


def _correct(done: dict[str, dict]) -> dict[str, np.ndarray]:
    return {
        seed: unpack(entry["correct"], entry["summary"]["test_examples"])
        for seed, entry in done.items()
    }


def _row(study: Study, name: str, done: dict[str, dict], extra: dict[str, dict]) -> Row:
    summaries = [entry["summary"] for entry in done.values()]
    errors = {seed: entry["summary"]["test_error"] for seed, entry in done.items()}
    if len(errors) > 1:
        low, high = of_mean(list(errors.values()))
        interval = Interval(max(0.0, low), min(100.0, high))
    else:
        (one,) = summaries
        low, high = of_rate(one["test_errors"], one["test_examples"])
        interval = Interval(100 * low, 100 * high)
    validation = [s["validation_error"] for s in summaries if s["validation_error"] is not None]
    columns = {
        seed: extra.get(e["key"], {}) | {h: e["summary"][f] for h, f in study.columns.items()}
        for seed, e in done.items()
    }

    def median(values):
        return float(np.median(list(values)))

    return Row(
        tuple(study.rows[name][axis] for axis in study.axes) or (name,),
        errors,
        interval,
        float(np.mean(validation)) if validation else None,
        summaries[0]["parameters"],
        median(e["summary"]["training_seconds"] / e["together"] for e in done.values()),
        median(e["summary"]["images_per_second"] * e["together"] for e in done.values()),
        median(s["peak_memory_mb"] for s in summaries),
        summaries[0]["steps"],
        {h: {s: float(columns[s][h]) for s in done} for h in next(iter(columns.values()))},
    )


def cells(study: Study, table: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Returns the headings and the cells of a table as text."""
    compared = any(row.comparison for row in table)
    headings = [*name_headings(study), "test error, %", "95% interval", "seeds"]
    headings += ["difference", "its 95% interval", "p", "against the first"] * compared
    for heading in table[0].extra_columns:
        headings += [heading] + ["difference (95% interval)"] * compared
    headings += ["validation error, %", "parameters", "images/s"]
    headings += ["peak memory, MB", "training, s"]
    lines = []
    for row in table:
        line = [*row.names, _with_deviation(row.errors)]
        line += [f"{row.interval.low:.2f} to {row.interval.high:.2f}", str(len(row.errors))]
        if compared:
            c = row.comparison
            line += [f"{c.difference:+.2f}", _interval(c)] if c else ["", ""]
            line += [f"{c.p:.2g}", c.verdict] if c else ["", ""]
        for heading, values in row.extra_columns.items():
            line += [_with_deviation(values)]
            if compared:
                baseline = table[0].extra_columns[heading]
                line += [_difference(values, baseline) if row.comparison else ""]
        line += ["" if row.validation is None else f"{row.validation:.2f}"]
        line += [f"{row.parameters:,}", f"{row.images_per_second:.0f}"]
        line += [f"{row.peak_memory_mb:.0f}", f"{row.seconds:.0f}"]
        lines.append(line)
    return headings, lines


def _interval(c: Comparison) -> str:
    """Formats the interval of a difference over seeds; nothing for a single seed."""
    # In brackets, because a spreadsheet takes a cell that begins with a sign for a formula.
    return f"({c.interval.low:+.2f} to {c.interval.high:+.2f})" if c.interval else ""


def _with_deviation(values: dict[str, float]) -> str:
    """Formats the mean and the standard deviation over seeds."""
    deviation = _deviation(values)
    spread = "" if deviation is None else f" ± {deviation:.2f}"
    return f"{np.mean(list(values.values())):.2f}{spread}"


def _deviation(values: dict[str, float]) -> float | None:
    return float(np.std(list(values.values()), ddof=1)) if len(values) > 1 else None


def _difference(values: dict[str, float], baseline: dict[str, float]) -> str:
    """Formats the mean difference over the seeds that both have, and its interval."""
    differences = [values[seed] - baseline[seed] for seed in values if seed in baseline]
    if len(differences) < 2:
        return "".join(f"{d:+.2f}" for d in differences)
    low, high = of_mean(differences)
    return f"{np.mean(differences):+.2f} ({low:+.2f} to {high:+.2f})"
