"""Rows and cells of the tables of a sweep."""

import csv
import io
import pathlib

import pytest
from made_up_sweep import IMAGES, STUDY, WRONG, correct, entry, runs_of
from scipy import stats

from experiments.plots import text_tables as text_tables_module
from experiments.plots.text_tables import comma_separated
from experiments.sweeps import ledger, plan, statistics, tables
from experiments.sweeps.studies import Study, product
from experiments.tasks.registry import find_program


def test_rows(made):
    ((em, vb, uniform),) = made.tables
    assert em.names == ("em",) and em.errors == {"0": 1.0, "1": 2.0, "2": 4.5}
    # Mean 2.5, deviations -1.5, -0.5, 2: sqrt(6.5 / 2) = 1.803.
    assert em.mean == 2.5 and em.deviation == pytest.approx(1.8028, abs=1e-4)
    low, high = statistics.of_mean([1.0, 2.0, 4.5])
    assert low < 0 and em.interval == (0, high)
    assert em.comparison is None
    assert vb.comparison.difference == pytest.approx(11.25 - 2.5)
    assert vb.comparison.verdict == "worse" and uniform.comparison.verdict == "undecided"
    alone = [
        statistics.compare(
            *({str(s): correct(WRONG[r][s], s) for s in range(3)} for r in (row, "em"))
        ).p
        for row in ("vb", "uniform")
    ]
    got = [row.comparison.p for row in (vb, uniform)]
    assert got == pytest.approx(statistics.holm(alone))


def test_rows_with_other_test_images_are_not_compared():
    """The sign test pairs images, and those of two data sets are no pairs."""
    for axis, values in (("dataset", ("digits", "mnist")), ("split_seed", ("0", "1"))):
        study = product({axis: values}, ("0", "1"))
        runs = runs_of(study)
        entries = {r.key: entry(r.key, correct(8, int(r.seed))) for r in runs}
        ((first, second),) = tables.rows(study, runs, entries)
        assert first.comparison is None and second.comparison is None
    for axis, values in (("train_examples", ("10", "20")), ("image_size", ("24x24", "32x32"))):
        study = product({axis: values}, ("0", "1"))
        entries = {r.key: entry(r.key, correct(8, int(r.seed))) for r in runs_of(study)}
        ((_, second),) = tables.rows(study, runs_of(study), entries)
        assert second.comparison.difference == 0


@pytest.mark.parametrize(
    "program, axis, values",
    [
        ("multimnist", "shift", ("4", "6")),
        ("multimnist", "test_pairs", ("100", "200")),
        ("affnist", "placement", ("shift", "canvas")),
    ],
)
def test_programs_that_make_other_test_images_of_the_same_data(program, axis, values):
    study = product({axis: values}, ("0",))
    tuned = {row: [{}] for row in study.rows}
    defaults = find_program(program).defaults
    runs = plan.make(study, {}, pathlib.Path("/f"), defaults, tuned, study.seeds)
    entries = {r.key: entry(r.key, correct(8)) for r in runs}
    ((first, second),) = tables.rows(study, runs, entries)
    assert first.comparison is None and second.comparison is None


def test_runs_that_are_missing_or_failed_are_left_out(made):
    by_row = {name: [r for r in made.runs if r.row == name] for name in STUDY.rows}
    del made.entries[by_row["routing=em"][1].key]
    for run in by_row["routing=vb"]:
        made.entries[run.key] = ledger.failure(run.key, "the reason")
    ((em, uniform),) = made.tables
    assert em.errors == {"0": 1.0, "2": 4.5} and uniform.comparison.seeds == 2
    for run in by_row["routing=em"]:
        made.entries.pop(run.key, None)
    ((uniform,),) = made.tables
    assert uniform.comparison is None, "there is nothing to compare with"


def test_one_run_has_the_interval_of_its_rate():
    study = product({"routing": ("em", "vb")})
    runs = runs_of(study)
    entries = {r.key: entry(r.key, correct(n), 4) for r, n in zip(runs, (3, 200))}
    ((em, vb),) = tables.rows(study, runs, entries)
    assert em.interval == pytest.approx([100 * x for x in statistics.of_rate(3, IMAGES)])
    assert em.deviation is None and vb.comparison.verdict == "one seed"
    assert (em.seconds, em.images_per_second) == (2.4, 400), "shared by four runs"


def test_group_by_compares_values_separately():
    rows = {f"{r} {v}": {"routing": r, "votes": v} for v in ("full", "conv") for r in ("em", "vb")}
    study = Study(rows, seeds=("0", "1"), group_by="votes")
    runs = runs_of(study)
    entries = {r.key: entry(r.key, correct(3 + n, n)) for n, r in enumerate(runs)}
    full, conv = tables.rows(study, runs, entries)
    assert [row.names for row in full + conv] == [(name,) for name in rows]
    assert [row.comparison is None for row in full + conv] == [True, False, True, False]


def test_three_text_forms_agree(made):
    headings, lines = tables.cells(STUDY, made.tables[0])
    assert headings[:4] == ["routing", "test error, %", "95% interval", "seeds"]
    assert lines[0][:4] == ["em", "2.50 ± 1.80", "0.00 to 6.98", "3"]
    em, vb = (list(row.errors.values()) for row in made.tables[0][:2])
    low, high = stats.ttest_rel(vb, em).confidence_interval(0.95)
    assert headings[4:6] == ["difference", "its 95% interval"]
    assert lines[1][4:6] == ["+8.75", f"(+{low:.2f} to +{high:.2f})"]
    assert lines[1][7] == "worse" and lines[0][4:8] == [""] * 4
    assert "1,234,567" in lines[0]
    markdown = text_tables_module.markdown(headings, lines).splitlines()
    assert [line.strip("| ").split(" | ")[0] for line in markdown] == [
        "routing",
        "---",
        "em",
        "vb",
        "uniform",
    ]
    assert len({line.count("|") for line in markdown}) == 1
    read = list(csv.reader(io.StringIO(comma_separated(headings, lines))))
    assert read == [headings, *lines]
    latex = text_tables_module.latex(headings, lines, "50% of a_b & c")
    assert r"50\% of a\_b \& c" in latex and r"2.50 $\pm$ 1.80 & 0.00 to 6.98" in latex
    body = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert len(body) == 4 and all(line.count(" & ") == len(headings) - 1 for line in body)
    assert latex.count("{") == latex.count("}")


def test_further_columns_are_compared_seed_by_seed(made):
    values = {"em": (10.0, 12.0, 17.0), "vb": (11.0, 14.0, 20.0), "uniform": (9.0, 12.0, 18.0)}
    more = {r.key: {"x": values[r.config.routing][int(r.seed)]} for r in made.runs}
    ((em, vb, uniform),) = made._replace(extra_columns=more).tables
    assert em.extra_columns == {"x": {"0": 10.0, "1": 12.0, "2": 17.0}}
    headings, lines = tables.cells(STUDY, [em, vb, uniform])
    column = headings.index("x")
    # Mean 13, deviations -3, -1, 4: sqrt(26 / 2) = 3.61. Differences of vb 1, 2, 3: mean 2,
    # deviation 1, and Student's quantile with two degrees of freedom is 4.3027.
    assert lines[0][column : column + 2] == ["13.00 ± 3.61", ""]
    assert lines[1][column : column + 2] == ["15.00 ± 4.58", "+2.00 (-0.48 to +4.48)"]
    low, high = statistics.of_mean([-1.0, 0.0, 1.0])
    assert lines[2][column + 1] == f"+0.00 ({low:+.2f} to {high:+.2f})"
    assert len({len(line) for line in [headings, *lines]}) == 1


def test_further_columns_over_the_seeds_that_both_rows_have(made):
    more = {r.key: {"x": float(r.config.seed)} for r in made.runs}
    for run in made.runs:
        if (run.row, run.seed) in (("routing=em", "0"), ("routing=vb", "1")):
            del made.entries[run.key]
    ((em, vb, _),) = made._replace(extra_columns=more).tables
    headings, lines = tables.cells(STUDY, [em, vb])
    assert lines[1][headings.index("x") + 1] == "+0.00", "of seed 2 alone, no interval"
