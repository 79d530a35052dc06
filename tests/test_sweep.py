"""Sweeps: grids, plans, tables, and what happens when runs fail or are there already."""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import types

import pytest
from absl import flags

from capsjax.routing import ROUTINGS
from experiments import config as config_lib
from experiments import sweep
from experiments.errors import UserError
from experiments.studies import STUDIES

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture
def run_sweep(monkeypatch):
    """``main`` of the program with flags, in this process."""
    values = flags.FLAGS

    def run(*arguments):
        before = set(values)
        try:
            sweep.define_flags()
            values(["sweep", *arguments])
            monkeypatch.setattr(sys, "argv", ["sweep", *arguments])
            sweep.main()
        finally:
            for name in set(values) - before:
                delattr(values, name)

    was_parsed = values.is_parsed()
    yield run
    if not was_parsed:
        values.unparse_flags()


@pytest.mark.parametrize("text, want", [
    ("seed=0", {"seed": ("0",)}),
    ("routing=em,vb;seed=0,1", {"routing": ("em", "vb"), "seed": ("0", "1")}),
    ("learning_rate=1e-3,0.01", {"learning_rate": ("1e-3", "0.01")}),
    ("seed=1; routing=em, vb ;depth=1", {
        "seed": ("1",), "routing": ("em", "vb"), "depth": ("1",)}),
])
def test_parse_grid(text, want):
    got = sweep.parse_grid(None, text, 0)
    assert got == want and list(got) == list(want)


def test_studies_are_grids_and_seeds_can_be_others():
    assert sweep.parse_grid("routing", None, 0) == STUDIES["routing"]
    assert STUDIES["routing"]["routing"] == tuple(ROUTINGS)
    assert sweep.parse_grid("routing", None, 2)["seed"] == ("0", "1")
    assert sweep.parse_grid("depth", None, 3)["seed"] == ("0", "1", "2")
    assert sweep.parse_grid(None, "depth=1,2", 1) == {"depth": ("1", "2"), "seed": ("0",)}
    assert len(STUDIES["routing"]["seed"]) == 3, "the studies themselves are as they were"


@pytest.mark.parametrize("text", [
    "", "seed", "seed=", "seed=0,", "seed=,0", "=1", "seed=0;", ";", "seed=0;routing",
    "seed=0;seed=1", "seed=0,0", "workdir=here",
])
def test_what_is_no_grid(text):
    with pytest.raises(UserError, match="--grid="):
        sweep.parse_grid(None, text, 0)


@pytest.mark.parametrize("study, text", [(None, None), ("routing", "seed=0")])
def test_a_study_or_a_grid(study, text):
    with pytest.raises(UserError, match=r"one of --study=routing\|depth.* and --grid is needed"):
        sweep.parse_grid(study, text, 0)


def test_plan():
    grid = {"routing": ("dynamic", "frozen"), "seed": ("0", "1")}
    plan = sweep.make_plan(grid, {"dataset": "digits", "steps": 2}, pathlib.Path("a/b"))
    place = "a/b/routing={},seed={}".format
    assert [run["point"] for run in plan] == [
        {"routing": r, "seed": s} for r in ("dynamic", "frozen") for s in ("0", "1")]
    assert [run["flags"]["workdir"] for run in plan] == [
        place(r, s) for r in ("dynamic", "frozen") for s in "01"]
    assert len({run["flags"]["workdir"] for run in plan}) == 4
    given = {"dataset": "digits", "steps": 2}
    assert plan[1]["flags"] == given | {
        "routing": "dynamic", "seed": "1", "workdir": place("dynamic", 1)}
    assert plan[3]["flags"] == given | {
        "routing": "frozen", "seed": "1", "workdir": place("frozen", 1),
        "frozen_from": place("dynamic", 1)}
    assert sweep.command(plan[0]) == [
        "python", "-m", "experiments.mnist", "--dataset=digits", "--steps=2", "--routing=dynamic",
        "--seed=0", f"--workdir={place('dynamic', 0)}"]


def test_frozen_couplings_come_from_the_run_that_is_the_same_otherwise():
    grid = {"votes": ("full", "conv"), "routing": ("dynamic", "frozen"), "seed": ("0", "1")}
    for run in sweep.make_plan(grid, {}, pathlib.Path("f")):
        if run["point"]["routing"] == "frozen":
            want = sweep.make_plan({k: (v,) for k, v in run["point"].items()} | {
                "routing": ("dynamic",)}, {}, pathlib.Path("f"))[0]["flags"]["workdir"]
            assert run["flags"]["frozen_from"] == want
        else:
            assert "frozen_from" not in run["flags"]


def test_a_point_comes_before_a_flag():
    (run,) = sweep.make_plan({"seed": ("3",)}, {"seed": 1, "epochs": 2}, pathlib.Path("f"))
    config = config_lib.parse(sweep.BASE, sweep.command(run)[3:])
    assert (config.seed, config.epochs) == (3, 2)


def test_every_run_of_every_study_has_legal_flags():
    for grid in STUDIES.values():
        for run in sweep.make_plan(grid, {}, pathlib.Path("f")):
            config = config_lib.parse(sweep.BASE, sweep.command(run)[3:]).resolved("digits")
            config.model_config((28, 28, 1), 10)


@pytest.mark.parametrize("grid, message", [
    ({"no_such_flag": ("1",)}, "no_such_flag"),
    ({"routin": ("em",)}, "routin.*routing"),
    ({"routing": ("em", "dynamc")}, "--routing=dynamc.*did you mean dynamic"),
    ({"seed": ("0", "x")}, "--seed=x"),
    ({"depth": ("-1",)}, "--depth=-1"),
    ({"reconstruction": ("perhaps",)}, "--reconstruction=perhaps"),
])
def test_flags_and_values_that_are_not_there(grid, message):
    with pytest.raises(UserError, match=message):
        sweep.make_plan(grid, {}, pathlib.Path("f"))


def made_up(seed=0, **changes):
    return {
        "test_error": 1.5, "parameters": 1234567, "images_per_second": 100.0,
        "peak_memory_mb": 2000, "training_seconds": 9.6, "seed": seed, "commit": "abc",
        "device_kind": "cpu", "versions": {"jax": "1"}, "routing": "em", "votes": "full",
        "squash": "none", "loss": "margin", "depth": 1, "steps": 2, "test_errors": 3,
        "test_examples": 360, "validation_error": None} | changes


def test_table():
    grid = {"routing": ("em", "vb"), "votes": ("full",), "seed": ("0", "1", "2")}
    runs = [
        {"point": {"routing": r, "votes": "full", "seed": str(s)},
         "summary": made_up(s, test_error=error, images_per_second=rate)}
        for r, s, error, rate in [
            ("em", 0, 1.0, 10.0), ("em", 1, 2.0, 1000.0), ("em", 2, 4.5, 30.0),
            ("vb", 0, 7.25, 5.0)]]
    lines = sweep.table(grid, runs).splitlines()
    assert lines[:2] == [
        "| routing | test error, % | parameters | images/s | peak memory, MB | training, s |",
        "| --- | --- | --- | --- | --- | --- |"]
    # Mean 2.5, deviations -1.5, -0.5, 2: sqrt(6.5 / 2) = 1.803; the median rate is 30.
    assert lines[2] == "| em | 2.50 ± 1.80 | 1,234,567 | 30 | 2000 | 10 |"
    assert lines[3] == "| vb | 7.25 | 1,234,567 | 5 | 2000 | 10 |"
    assert len([line for line in lines if line.startswith("|")]) == 4


def test_table_of_seeds_alone():
    runs = [{"point": {"seed": str(s)}, "summary": made_up(s, test_error=s)} for s in (1, 3)]
    lines = sweep.table({"seed": ("1", "3")}, runs).splitlines()
    assert lines[2].startswith("| 2.00 ± 1.41 | 1,234,567 |")
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|")


def test_table_with_two_axes():
    points = [{"routing": r, "depth": d} for r in ("em", "vb") for d in ("1", "2")]
    runs = [{"point": p, "summary": made_up(test_error=n)} for n, p in enumerate(points)]
    lines = sweep.table({"routing": ("em", "vb"), "depth": ("1", "2")}, runs).splitlines()
    assert [line.split(" | ")[:3] for line in lines[2:6]] == [
        ["| em", "1", "0.00"], ["| em", "2", "1.00"], ["| vb", "1", "2.00"], ["| vb", "2", "3.00"]]


def test_the_command_can_be_given_to_a_shell(tmp_path, monkeypatch):
    grid = "--grid=routing=em,vb;seed=0,1"
    monkeypatch.setattr(sys, "argv", ["sweep", grid, "--runs", "/here"])
    sweep.write(str(tmp_path / "out"), {}, [{"point": {}, "summary": made_up()}], "")
    command = json.loads((tmp_path / "out.json").read_text())["command"]
    assert shlex.split(command) == ["python", "-m", "experiments.sweep", grid]


def test_output(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [
        "sweep", "--grid=seed=0,1", "--runs=/here", "--steps=2", "--cache_dir=/there",
        f"--output={tmp_path}"])
    runs = [
        {"point": {"seed": str(s)}, "summary": made_up(s, commit=f"c{s}", more="more")}
        for s in (0, 1)]
    sweep.write(str(tmp_path / "new" / "table"), {"seed": ("0", "1")}, runs, "| a |")
    text = (tmp_path / "new" / "table.md").read_text()
    stored = json.loads((tmp_path / "new" / "table.json").read_text())
    assert text.startswith("| a |\n\n`") and text.endswith("commit c0, c1\n")
    assert stored["command"] in text and "--steps=2" in stored["command"]
    assert not any(word in text for word in ("/here", "/there", str(tmp_path)))
    assert stored["command"].startswith("python -m experiments.sweep ")
    assert stored["grid"] == {"seed": ["0", "1"]} and stored["commit"] == ["c0", "c1"]
    assert [row["seed"] for row in stored["runs"]] == [0, 1]
    assert all(row["test_error"] == 1.5 and "more" not in row for row in stored["runs"])


@pytest.mark.parametrize("arguments, message", [
    ([], "--study"),
    (["--study=routing", "--grid=seed=0"], "--study"),
    (["--grid=no_such_flag=1"], "no_such_flag"),
    (["--grid=routing=dynamc"], "did you mean dynamic"),
    (["--grid=seed="], "--grid=seed="),
])
def test_a_bad_grid_ends_before_anything_starts(
        run_sweep, arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "execute", None)
    with pytest.raises(UserError, match=message):
        run_sweep(*arguments, f"--runs={tmp_path / 'runs'}")
    assert capsys.readouterr().out == "" and not (tmp_path / "runs").exists()


def test_dry_run_prints_the_commands(run_sweep, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "execute", None)
    folder = tmp_path / "runs"
    run_sweep("--grid=routing=dynamic,frozen;seed=1", "--dataset=digits", "--noreconstruction",
              "--cache_dir=x", f"--runs={folder}", "--dry_run")
    start = "python -m experiments.mnist --dataset=digits --reconstruction=False --cache_dir=x"
    assert capsys.readouterr().out.splitlines() == [
        f"{start} --routing=dynamic --seed=1 --workdir={folder}/routing=dynamic,seed=1",
        f"{start} --routing=frozen --seed=1 --workdir={folder}/routing=frozen,seed=1 "
        f"--frozen_from={folder}/routing=dynamic,seed=1"]
    assert not folder.exists()


def test_default_folder_is_the_same_for_the_same_flags(run_sweep, capsys):
    def folder(*arguments):
        run_sweep("--grid=seed=0", "--dry_run", *arguments)
        return capsys.readouterr().out.split("--workdir=")[1].split("/seed=0")[0]

    same = folder("--epochs=1", "--cache_dir=a")
    assert "/runs/sweep-grid-" in same
    assert same == folder("--epochs=1", "--cache_dir=b") == folder("--seeds=1", "--epochs=1")
    assert same != folder("--epochs=2")


@pytest.fixture
def programs(monkeypatch):
    """Stands for the processes of runs: ``programs.status`` and ``.stderr`` by routing."""
    fake = types.SimpleNamespace(commands=[], status={}, stderr={})

    def run(command):
        arguments = config_lib.parse(sweep.BASE, command[3:])
        fake.commands.append(arguments)
        status = fake.status.get(arguments.routing, 0)
        if status == 0:
            workdir = pathlib.Path(arguments.workdir)
            summary = made_up(arguments.seed, test_error=arguments.seed + 1.0)
            (workdir / "summary.json").write_text(json.dumps(summary))
        stderr = fake.stderr.get(arguments.routing, "")
        return subprocess.CompletedProcess(command, status, "", stderr)

    monkeypatch.setattr(sweep, "execute", run)
    return fake


GRID = "--grid=routing=em,vb;seed=0,1"


def test_a_failure_is_recorded_and_only_what_is_missing_runs_again(
        run_sweep, programs, tmp_path, capsys):
    programs.status["vb"], programs.stderr["vb"] = 2, "much\nerror: the reason\n"
    with pytest.raises(SystemExit) as exit_:
        run_sweep(GRID, f"--runs={tmp_path}", f"--output={tmp_path}/out")
    assert exit_.value.code == 1 and len(programs.commands) == 4
    out, err = capsys.readouterr()
    assert "| em | 1.50 ± 0.71 |" in out and "vb" not in out
    assert "routing=vb,seed=0: error: the reason\n" in err
    assert "2 of 4 runs failed: routing=vb,seed=0, routing=vb,seed=1\n" in err
    for seed in "01":
        folder = tmp_path / f"routing=vb,seed={seed}"
        assert (folder / "error.txt").read_text() == "much\nerror: the reason\nexit status 2\n"
        assert not (tmp_path / f"routing=em,seed={seed}" / "error.txt").exists()
    assert len(json.loads((tmp_path / "out.json").read_text())["runs"]) == 2

    programs.status.clear()
    programs.commands.clear()
    run_sweep(GRID, f"--runs={tmp_path}")
    assert [(run.routing, run.seed) for run in programs.commands] == [("vb", 0), ("vb", 1)]
    assert not list(tmp_path.glob("*/error.txt"))
    out, err = capsys.readouterr()
    assert "| em | 1.50 ± 0.71 |" in out and "| vb | 1.50 ± 0.71 |" in out
    assert "failed" not in err

    programs.commands.clear()
    run_sweep(GRID, f"--runs={tmp_path}")
    assert programs.commands == [] and capsys.readouterr().out == out


def test_runs_with_other_flags_in_the_same_folder_are_not_taken(run_sweep, programs, tmp_path):
    run_sweep(GRID, f"--runs={tmp_path}", "--steps=2")
    programs.commands.clear()
    try:
        run_sweep(GRID, f"--runs={tmp_path}", "--steps=2000")
    except UserError:
        return
    assert len(programs.commands) == 4


def test_frozen_comes_after_dynamic(run_sweep, programs, tmp_path):
    run_sweep("--grid=routing=frozen,em,dynamic", f"--runs={tmp_path}")
    order = [run.routing for run in programs.commands]
    assert order.index("dynamic") < order.index("frozen")


@pytest.mark.parametrize("flag, grid, name, want", [
    ("--routing=dynamic", "preset=small,matrix", "routing", "dynamic"),
    ("--votes=full", "preset=small,matrix", "votes", "full"),
    ("--init=lecun", "recipe=paper,official", "init", "lecun"),
    ("--loss=margin", "routing=dynamic,self", "loss", "margin"),
    ("--seed=3", "routing=em,vb", "seed", 3),
])
def test_flags_apply_to_all_runs(run_sweep, programs, tmp_path, flag, grid, name, want):
    run_sweep(f"--grid={grid}", flag, f"--runs={tmp_path}")
    assert [getattr(run.resolved("digits"), name) for run in programs.commands] == [want, want]


def test_no_run_succeeds(run_sweep, programs, tmp_path):
    programs.status |= {"em": 2, "vb": 1}
    with pytest.raises(UserError, match=f"no run succeeded.*{tmp_path}"):
        run_sweep(GRID, f"--runs={tmp_path}")


@pytest.mark.parametrize("status", [-signal.SIGINT, 130, 143])
def test_an_interrupted_run_ends_the_sweep(run_sweep, programs, tmp_path, status):
    programs.status["em"] = status
    with pytest.raises(KeyboardInterrupt):
        run_sweep(GRID, f"--runs={tmp_path}")
    assert len(programs.commands) == 1 and not list(tmp_path.glob("*/error.txt"))


def test_runs_start_at_the_root_in_folders_of_where_the_sweep_is(
        run_sweep, programs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_sweep("--grid=routing=dynamic,frozen", "--runs=here")
    first, second = programs.commands
    assert first.workdir == str(tmp_path / "here" / "routing=dynamic")
    assert pathlib.Path(ROOT, second.frozen_from) == pathlib.Path(first.workdir)


def test_a_real_sweep_with_a_run_that_fails(tmp_path):
    command = [
        sys.executable, "-m", "experiments.sweep", "--grid=votes=conv,matrix", "--dataset=digits",
        "--preset=tiny", "--steps=1", "--batch_size=8", "--noreconstruction", "--accelerator=cpu",
        "--validation_fraction=0", f"--cache_dir={tmp_path / 'cache'}",
        f"--runs={tmp_path / 'runs'}", f"--output={tmp_path / 'table'}"]
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}

    def run():
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)

    done = run()
    assert done.returncode == 1, done.stderr
    good, bad = (tmp_path / "runs" / f"votes={name}" for name in ("conv", "matrix"))
    summary = json.loads((good / "summary.json").read_text())
    assert summary["votes"] == "conv" and summary["steps"] == 1
    assert not (good / "error.txt").exists() and not (bad / "summary.json").exists()
    reason = (bad / "error.txt").read_text()
    assert reason.startswith("error: ") and reason.endswith("\nexit status 2\n")
    assert reason.count("\n") == 2 and "matrix" in reason
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "1 of 2 runs failed: votes=matrix"
    row = next(line for line in done.stdout.splitlines() if line.startswith("| conv"))
    assert f"| {summary['test_error']:.2f} | {summary['parameters']:,} |" in row
    (stored,) = json.loads((tmp_path / "table.json").read_text())["runs"]
    assert stored["test_error"] == summary["test_error"]

    times = {path: path.stat().st_mtime_ns for path in good.rglob("*")}
    again = run()
    assert again.returncode == 1 and again.stdout == done.stdout
    assert {path: path.stat().st_mtime_ns for path in good.rglob("*")} == times
