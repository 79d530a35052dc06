"""Tables from a made-up ledger, in three forms, and the picture beside them."""

import csv
import io
import pathlib

import numpy as np
import pytest
from helpers import MNIST, read_json

from experiments import plots
from experiments.plots import text_tables as text_tables_module
from experiments.plots.text_tables import comma_separated, escape
from experiments.sweeps import ledger, plan, report, statistics, tables
from experiments.sweeps.studies import Study, product
from experiments.training.summary import pack

IMAGES = 400


def correct(wrong, seed=0):
    """All but so many of the images, spread by the seed."""
    right = np.ones(IMAGES, bool)
    right[np.random.default_rng(seed).permutation(IMAGES)[:wrong]] = False
    return right


def entry(key, right, together=1, **changes):
    errors = int((~right).sum())
    return ledger.success(key, {
        "test_error": 100 * errors / IMAGES, "test_errors": errors, "test_examples": IMAGES,
        "parameters": 1234567, "images_per_second": 100.0, "peak_memory_mb": 2000,
        "training_seconds": 9.6, "wall_seconds": 12.0, "seed": 0, "commit": "abc", "steps": 2,
        "device_kind": "cpu", "versions": {"jax": "1"}, "routing": "em", "votes": "full",
        "squash": "none", "loss": "margin", "depth": 1, "validation_error": 3.0,
        "validation_loss": 0.5, "test_loss": 0.25, "dataset": "digits",
        "test_correct": pack(right)} | changes, together)


def runs_of(study, tuned=None, seeds=None):
    tuned = tuned or {row: [{}] for row in study.rows}
    seeds = study.seeds if seeds is None else seeds
    return plan.make(study, {}, pathlib.Path("/f"), MNIST, tuned, seeds)


STUDY = product({"routing": ("em", "vb", "uniform"), "votes": ("full",)}, ("0", "1", "2"))
WRONG = {"em": (4, 8, 18), "vb": (40, 45, 50), "uniform": (5, 7, 18)}


@pytest.fixture
def made():
    runs = runs_of(STUDY)
    entries = {}
    for run in runs:
        wrong = WRONG[run.config.routing][int(run.seed)]
        entries[run.key] = entry(
            run.key, correct(wrong, run.config.seed), seed=run.config.seed,
            routing=run.config.routing)
    return report.StudyReport(
        "grid", STUDY, [], runs, entries, "python -m experiments.sweep --grid=a|b_c", {}, [])


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
        statistics.compare(*({str(s): correct(WRONG[r][s], s) for s in range(3)}
                             for r in (row, "em"))).p for row in ("vb", "uniform")]
    got = [row.comparison.p for row in (vb, uniform)]
    assert got == pytest.approx(statistics.holm(alone))


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


def test_values_of_a_flag_are_compared_apart():
    rows = {f"{r} {v}": {"routing": r, "votes": v} for v in ("full", "conv") for r in ("em", "vb")}
    study = Study(rows, seeds=("0", "1"), group_by="votes")
    runs = runs_of(study)
    entries = {r.key: entry(r.key, correct(3 + n, n)) for n, r in enumerate(runs)}
    full, conv = tables.rows(study, runs, entries)
    assert [row.names for row in full + conv] == [(name,) for name in rows]
    assert [row.comparison is None for row in full + conv] == [True, False, True, False]


def test_three_forms_say_the_same(made):
    headings, lines = tables.cells(STUDY, made.tables[0])
    assert headings[:4] == ["routing", "test error, %", "95% interval", "seeds"]
    assert lines[0][:4] == ["em", "2.50 ± 1.80", "0.00 to 6.98", "3"]
    assert lines[1][4] == "+8.75" and lines[1][6] == "worse" and lines[0][4:7] == [""] * 3
    assert "1,234,567" in lines[0]
    markdown = text_tables_module.markdown(headings, lines).splitlines()
    assert [line.strip("| ").split(" | ")[0] for line in markdown] == [
        "routing", "---", "em", "vb", "uniform"]
    assert len({line.count("|") for line in markdown}) == 1
    read = list(csv.reader(io.StringIO(comma_separated(headings, lines))))
    assert read == [headings, *lines]
    latex = text_tables_module.latex(headings, lines, "50% of a_b & c")
    assert r"50\% of a\_b \& c" in latex and r"2.50 $\pm$ 1.80 & 0.00 to 6.98" in latex
    body = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert len(body) == 4 and all(line.count(" & ") == len(headings) - 1 for line in body)
    assert latex.count("{") == latex.count("}")


def test_escape():
    assert escape("a|b") == "a|b"
    assert escape("100% & x_1 #2 {y} ~^\\") == (
        r"100\% \& x\_1 \#2 \{y\} \textasciitilde{}\textasciicircum{}\textbackslash{}")
    assert text_tables_module.markdown(["a|b"], []).startswith("| a\\|b |")


def test_files(made, tmp_path):
    paths = report.write(made, tmp_path / "table")
    assert [path.suffix for path in paths] == [".md", ".csv", ".tex", ".png", ".json"]
    assert all(path.stat().st_size for path in paths) and len(list(tmp_path.iterdir())) == 5
    text = paths[0].read_text()
    assert tables.NOTE in text and text.endswith("--grid=a|b_c`, commit abc\n")
    assert r"--grid=a|b\_c, commit abc" in paths[2].read_text()
    stored = read_json(paths[4])
    assert stored["commit"] == ["abc"] and len(stored["runs"]) == 9 and len(stored["rows"]) == 3
    assert stored["runs"][4]["routing"] == "vb" and stored["runs"][4]["seed"] == 1
    assert stored["rows"][1]["comparison"]["verdict"] == "worse"
    assert stored["rows"][0]["errors"] == {"0": 1.0, "1": 2.0, "2": 4.5}


def test_further_columns_and_notes(made):
    study = STUDY._replace(columns={"validation loss": "validation_loss"})
    assert "| validation loss |" in report.to_markdown(made._replace(study=study))
    more = {run.key: {"affine, %": 10.0 + run.config.seed} for run in made.runs}
    text = report.to_markdown(made._replace(extra_columns=more, notes=["A note."]))
    assert "| affine, % | difference (95% interval) |" in text and "| 11.00 ± 1.00 |" in text
    assert "\n\nA note.\n\n" in text
    assert f"{tables.NOTE} {tables.EXTRA_NOTE}\n\n" in text


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


def test_tuning_is_told():
    study = Study(
        {"a": {}, "b": {"routing": "uniform"}}, seeds=("0",), about="What is asked.",
        tuning={"learning_rate": ("0.001", "0.01")})
    tried = runs_of(study, plan.candidates(study), (plan.TUNING_SEED,))
    scores = dict(zip((r.key for r in tried), (2.0, 1.0, 3.0)))
    entries = {k: entry(k, correct(5), validation_error=v) for k, v in scores.items()}
    runs = runs_of(study, plan.choose(tried, entries))
    assert [run.config.learning_rate for run in runs] == [0.01, 0.001]
    entries |= {r.key: entry(r.key, correct(6)) for r in runs}
    text = report.to_markdown(report.StudyReport("s", study, tried, runs, entries, "c", {}, []))
    assert text.startswith("What is asked.\n\nValidation error, %, of one run each")
    assert "| a | 2.00 | **1.00** |" in text and "| b | **3.00** | failed |" in text


def test_hparams(made, tmp_path):
    pytest.importorskip("tensorboardX")
    report.log_hparams(made.runs[:2], made.entries, MNIST, tmp_path / "board")
    folders = [run.workdir.name for run in made.runs[:2]]
    for name in folders:
        (path,) = (tmp_path / "board" / name).glob("events*")
        data = path.read_bytes()
        assert b"sweep/test_error" in data and b"_hparams_/session_start_info" in data
        assert b"routing" in data
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "board").rglob("*") if p.is_file()}
    report.log_hparams(made.runs[:2], made.entries, MNIST, tmp_path / "board")
    assert times == {
        p: p.stat().st_mtime_ns for p in (tmp_path / "board").rglob("*") if p.is_file()}


def test_picture(tmp_path):
    from experiments.plots import sweep_intervals

    table = [plots.Dots("dynamic", [1.0, 2.0], 0.5, 2.5), plots.Dots("x" * 60, [3.0], 2, 4)]
    figure = sweep_intervals._intervals_figure([table, table[:1]], "A title")
    first, second = figure.axes[1:]
    assert [text.get_text() for text in first.get_yticklabels()] == ["dynamic", "x" * 43 + "…"]
    lines = [line.get_xydata().tolist() for line in first.lines]
    assert lines[0] == [[1.5, 0], [1.5, 1]], "the mean of the first row"
    assert lines[1:4] == [[[0.5, 0], [2.5, 0]], [[1, 0], [2, 0]], [[1.5, 0]]]
    assert second.get_xlabel() == "test error, %" and first.get_xlabel() == ""
    assert first.get_xlim() == second.get_xlim()
    assert first.get_ylim()[0] > first.get_ylim()[1], "the first row is at the top"
    plots.plot_intervals(tmp_path / "a.pdf", [table])
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
