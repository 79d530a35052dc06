"""The command sweep: what is run, recorded, printed and refused."""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from absl import flags
from helpers import MNIST, ROOT, read_json, run_command
from npz_files import arrays

from experiments import sweep
from experiments.config import UserError, resolve
from experiments.config.flags import parse_flags
from experiments.files.bits import pack, unpack
from experiments.sweeps import executors, grouping, ledger, plan, studies, time_estimate
from experiments.sweeps.studies import Study
from experiments.tasks.registry import find_program

GRID = "--grid=routing=em,vb;seed=0,1"


@pytest.fixture
def run_sweep(monkeypatch):
    """Runs ``main`` of the program with flags, in this process."""
    values = flags.FLAGS

    def run(*arguments):
        before = set(values)
        try:
            sweep.define_flags(arguments)
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


@pytest.fixture
def workers(monkeypatch):
    """Replaces processes: records their jobs; ``status`` and log depend on the routing."""
    fake = types.SimpleNamespace(groups=[], status={}, words={}, most=99)
    fake.error = lambda config: config.seed + 1

    def child(job, log, started):
        configs = [parse_flags(MNIST, arguments) for arguments in job["runs"]]
        fake.groups.append(configs)
        status = fake.status.get(configs[0].routing, 0)
        log.write_text(fake.words.get(configs[0].routing, ""))
        for config in configs[: fake.most] if status == 0 else ():
            right = np.ones(360, bool)
            right[: int(3.6 * fake.error(config))] = False
            summary = {
                "test_error": float(fake.error(config)),
                "test_errors": int((~right).sum()),
                "test_examples": 360,
                "test_correct": pack(right),
                "parameters": 1234567,
                "images_per_second": 100.0,
                "peak_memory_mb": 2000,
                "training_seconds": 9.6,
                "wall_seconds": 30.0,
                "together": len(configs[: fake.most]),
                "commit": "abc",
                "seed": config.seed,
                "device_kind": "cpu",
                "versions": {"jax": "1"},
                "steps": 2,
                "routing": config.routing,
                "votes": "full",
                "squash": "none",
                "loss": "margin",
                "depth": 1,
                "validation_error": 100 * config.learning_rate,
                "validation_loss": 0.1,
                "test_loss": 0.2,
                "dataset": "digits",
            }
            path = pathlib.Path(config.workdir) / "summary.json"
            path.write_text(json.dumps(summary))
        return status

    monkeypatch.setattr(executors, "_child", child)
    monkeypatch.setattr(grouping, "platform", lambda accelerator: "cpu")
    fake.runs = lambda: [config for group in fake.groups for config in group]
    return fake


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--study"),
        (["--study=routing", "--grid=seed=0"], "--study"),
        (["--study=routin"], "did you mean routing"),
        (["--grid=no_such_flag=1"], "no_such_flag"),
        (["--grid=routing=dynamc"], "did you mean dynamic"),
        (["--grid=seed="], "--grid=seed="),
        (["--grid=seed=0..9999"], "10,000 runs"),
        (["--grid=routing=em,vb", "--model=cnn"], "--routing applies only to capsule"),
        (["--grid=seed=0", "--workdir=x"], "--workdir is for one run"),
        (["--grid=routing=em,vb", "--routing=kde"], "--routing=kde: the runs of the sweep set"),
        (["--study=table1", "--seed=9"], "--seed=9: the runs of the sweep set --seed"),
        (["--study=affnist", "--program=mnist"], "--study=affnist is of affnist"),
        (["--study=learned_coupling", "--program=multimnist"], "=learned_coupling is of mnist"),
        (["--grid=seed=5..7", "--seeds=2"], "leave out --seeds=2"),
        (["--grid=seed=0", "--shard=2/2"], "--shard=2/2"),
        (["--grid=seed=0", "--shard=1"], "--shard=1"),
        (["--grid=seed=0", "--vmap=0"], "--vmap=0"),
        (["--grid=seed=0", "--merge=nowhere"], "--merge=.*nowhere"),
        (["--grid=seed=0", "--program=mnst"], "did you mean mnist"),
        (["--study=learned_coupling", "--validation_fraction=0"], "tuning needs validation data"),
    ],
)
def test_errors_are_reported_before_any_run_starts(
    run_sweep, workers, arguments, message, tmp_path, capsys
):
    with pytest.raises(UserError, match=message):
        run_sweep(*arguments, f"--runs={tmp_path / 'runs'}")
    assert capsys.readouterr().out == "" and not (tmp_path / "runs").exists()
    assert not workers.groups


def test_a_folder_that_cannot_be_written(run_sweep, workers, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written"):
        run_sweep(GRID, f"--runs={tmp_path}/file/runs")
    assert not workers.groups


def test_dry_run_prints_commands_and_their_time(run_sweep, workers, tmp_path, capsys, monkeypatch):
    guesses = iter([480.0, None])
    monkeypatch.setattr(time_estimate, "estimate_seconds", lambda runs, defaults: next(guesses))
    arguments = [
        GRID,
        "--dataset=digits",
        "--noreconstruction",
        "--cache_dir=x",
        f"--runs={tmp_path}/runs",
    ]
    run_sweep(*arguments, "--dry_run")
    out, err = capsys.readouterr()
    assert err == "4 runs, 4 missing: 8 min, estimated from their arithmetic\n"
    assert not (tmp_path / "runs").exists()
    points = [(r, s) for r in ("em", "vb") for s in "01"]
    for line, (routing, seed) in zip(out.splitlines(), points):
        words = shlex.split(line)
        assert words[:6] == [
            "python",
            "-m",
            "experiments.mnist",
            "--dataset=digits",
            "--cache_dir=x",
            "--reconstruction=False",
        ]
        assert words[6:8] == [f"--routing={routing}", f"--seed={seed}"]
        assert words[8].startswith(f"--workdir={tmp_path}/runs/routing={routing},seed={seed},")
    run_sweep(*arguments, "--dry_run")
    assert capsys.readouterr().err == "4 runs, 4 missing: unknown time\n"
    workers.status["vb"] = 1
    with pytest.raises(SystemExit):
        run_sweep(*arguments, "--vmap=off")
    capsys.readouterr()
    run_sweep(*arguments, "--dry_run")
    assert capsys.readouterr().err == "4 runs, 2 missing: 60 s\n"
    run_sweep(*arguments, "--dry_run", "--jobs=2")
    assert capsys.readouterr().err == "4 runs, 2 missing: 30 s\n"


@pytest.mark.slow
def test_default_folder_is_the_same_for_the_same_flags(run_sweep, capsys):
    def folder(*arguments):
        run_sweep("--grid=seed=0", "--dry_run", *arguments)
        return capsys.readouterr().out.split("--workdir=")[1].split("/seed=0")[0]

    same = folder("--epochs=1", "--cache_dir=a")
    assert "/runs/sweep-grid-" in same
    assert same == folder("--epochs=1", "--cache_dir=b") == folder("--jobs=2", "--epochs=1")
    assert same != folder("--epochs=2")


def test_a_failure_is_recorded_and_only_what_is_missing_runs_again(
    run_sweep, workers, tmp_path, capsys
):
    workers.status["vb"], workers.words["vb"] = 2, "much\nerror: the reason\n"
    with pytest.raises(SystemExit) as exit_:
        run_sweep(GRID, f"--runs={tmp_path}/runs", f"--output={tmp_path}/out")
    assert exit_.value.code == 1 and len(workers.runs()) == 4
    out, err = capsys.readouterr()
    assert "| em | 1.50 ± 0.71 |" in out and "| vb |" not in out
    assert "error: the reason (exit status 2)\n" in err
    assert "2 of 4 runs failed: routing=vb,seed=0" in err
    entries = ledger.read(tmp_path / "runs")
    assert sorted("error" in entry for entry in entries.values()) == [False] * 2 + [True] * 2
    assert "error: the reason (exit status 2)" in [e.get("error") for e in entries.values()]
    assert "2 of 4 runs are missing." in out
    assert len(read_json(tmp_path / "out.json")["runs"]) == 2

    workers.status.clear()
    workers.groups.clear()
    run_sweep(GRID, f"--runs={tmp_path}/runs")
    assert [(run.routing, run.seed) for run in workers.runs()] == [("vb", 0), ("vb", 1)]
    assert not list(tmp_path.glob("runs/*/error.txt"))
    out, err = capsys.readouterr()
    assert "| em | 1.50 ± 0.71 |" in out and "| vb | 1.50 ± 0.71 |" in out
    assert "failed" not in err and "runs are missing" not in out

    workers.groups.clear()
    run_sweep(GRID, f"--runs={tmp_path}/runs")
    assert workers.groups == [] and capsys.readouterr().out == out


def test_printed_tables_come_from_the_ledger(run_sweep, workers, tmp_path, capsys):
    run_sweep(GRID, f"--runs={tmp_path}")
    before = capsys.readouterr().out
    for path in tmp_path.glob("*/summary.json"):
        path.write_text("{}")
    run_sweep(GRID, f"--runs={tmp_path}")
    assert capsys.readouterr().out == before
    text = (tmp_path / "ledger.jsonl").read_text().replace('"test_error": 1.0', '"test_error": 9.0')
    (tmp_path / "ledger.jsonl").write_text(text)
    run_sweep(GRID, f"--runs={tmp_path}")
    assert "| em | 5.50 ± 4.95 |" in capsys.readouterr().out


def test_runs_with_other_flags_are_other_runs(run_sweep, workers, tmp_path):
    run_sweep(GRID, f"--runs={tmp_path}", "--steps=2")
    run_sweep(GRID, f"--runs={tmp_path}", "--steps=2000")
    assert len(workers.runs()) == len({run.workdir for run in workers.runs()}) == 8
    run_sweep("--grid=routing=vb;seed=0..2", f"--runs={tmp_path}", "--steps=2")
    assert len(workers.runs()) == 9, "a run is known in another grid"


def test_frozen_comes_after_dynamic(run_sweep, workers, tmp_path):
    run_sweep("--grid=routing=frozen,em,dynamic", f"--runs={tmp_path}")
    order = [run.routing for run in workers.runs()]
    assert order == ["em", "dynamic", "frozen"]
    assert workers.runs()[2].frozen_from == workers.runs()[1].workdir


@pytest.mark.parametrize(
    "flag, grid, name, want",
    [
        ("--routing=dynamic", "preset=small,matrix", "routing", "dynamic"),
        ("--init=lecun", "recipe=paper,official", "init", "lecun"),
        ("--loss=margin", "routing=dynamic,uniform", "loss", "margin"),
        ("--seed=3", "routing=em,vb", "seed", 3),
    ],
)
def test_flags_apply_to_all_runs(run_sweep, workers, tmp_path, flag, grid, name, want):
    run_sweep(f"--grid={grid}", flag, f"--runs={tmp_path}")
    assert [getattr(resolve(run, "digits"), name) for run in workers.runs()] == [want, want]


def test_sweep_without_a_successful_run(run_sweep, workers, tmp_path):
    workers.status |= {"em": 2, "vb": 1}
    with pytest.raises(UserError, match=f"no run succeeded.*{tmp_path}"):
        run_sweep(GRID, f"--runs={tmp_path}")


@pytest.mark.parametrize("status", [-signal.SIGINT, 130, 143])
def test_an_interrupted_run_ends_the_sweep(run_sweep, workers, tmp_path, status):
    workers.status["em"] = status
    with pytest.raises(KeyboardInterrupt):
        run_sweep(GRID, f"--runs={tmp_path}", "--vmap=off")
    assert not list(tmp_path.glob("*/error.txt")) and not (tmp_path / "ledger.jsonl").exists()


def test_runs_are_kept_where_the_sweep_was_started(run_sweep, workers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_sweep("--grid=seed=0", "--runs=here")
    assert pathlib.Path(workers.runs()[0].workdir).parent == tmp_path / "here"


def test_runs_that_can_be_are_trained_together(run_sweep, workers, tmp_path, capsys):
    run_sweep(GRID, f"--runs={tmp_path}", "--vmap=8")
    assert [[c.seed for c in group] for group in workers.groups] == [[0, 1], [0, 1]]
    entries = ledger.read(tmp_path).values()
    assert [entry["together"] for entry in entries] == [2] * 4
    assert [entry["seconds"] for entry in entries] == [15.0] * 4
    out = capsys.readouterr().out
    assert "| 200 | 2000 | 5 |" in out, "images a second of both, half of the time"


def test_groups_are_limited_by_memory(run_sweep, workers, tmp_path):
    workers.most = 2
    run_sweep("--grid=seed=0..4", f"--runs={tmp_path}", "--vmap=8")
    assert [[c.seed for c in group] for group in workers.groups] == [
        [0, 1, 2, 3, 4],
        [2, 3, 4],
        [4],
    ]


def test_runs_of_a_group_whose_process_failed_are_tried_alone(run_sweep, workers, tmp_path):
    workers.status["em"] = -9
    with pytest.raises(SystemExit):
        run_sweep(GRID, f"--runs={tmp_path}", "--vmap=8")
    sizes = [(group[0].routing, len(group)) for group in workers.groups]
    assert sizes == [("em", 2), ("vb", 2), ("em", 1), ("em", 1)]
    assert sum("error" in entry for entry in ledger.read(tmp_path).values()) == 2


def test_parts_of_a_sweep_share_a_folder_or_are_merged(run_sweep, workers, tmp_path, capsys):
    run_sweep(GRID, f"--runs={tmp_path}", "--shard=0/2")
    assert "2 of 4 runs are missing." in capsys.readouterr().out
    assert len(workers.runs()) == 2 and (tmp_path / "ledger.0-of-2.jsonl").exists()
    run_sweep(GRID, f"--runs={tmp_path}", "--shard=1/2")
    whole = capsys.readouterr().out
    assert len(workers.runs()) == 4 and "| vb | 1.50 ± 0.71 |" in whole
    run_sweep(GRID, f"--runs={tmp_path}")
    assert len(workers.runs()) == 4 and capsys.readouterr().out == whole
    parts = ",".join(str(tmp_path / f"ledger.{n}-of-2.jsonl") for n in range(2))
    run_sweep(GRID, f"--runs={tmp_path}/other", f"--merge={parts}")
    assert len(workers.runs()) == 4 and capsys.readouterr().out == whole
    run_sweep("--grid=seed=0", f"--runs={tmp_path}/more", "--shard=0/2")
    assert "--shard=0/2: no run of this sweep belongs to this part" in capsys.readouterr().out
    assert len(workers.runs()) == 4


TUNED = Study(
    {"a": {"routing": "em"}, "b": {"routing": "vb"}},
    seeds=("0", "1"),
    tuning={"learning_rate": ("0.01", "0.001")},
)


def test_tuning_comes_first_and_is_kept(run_sweep, workers, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(studies.STUDIES, "tuned", TUNED)
    run_sweep("--study=tuned", f"--runs={tmp_path}")
    done = [(run.routing, run.seed, run.learning_rate) for run in workers.runs()]
    seed = int(plan.TUNING_SEED)
    assert done == [(r, seed, lr) for r in ("em", "vb") for lr in (0.01, 0.001)] + [
        (r, s, 0.001) for r in ("em", "vb") for s in (0, 1)
    ]
    out = capsys.readouterr().out
    assert "| a | 1.00 | **0.10** |" in out and "| b | 1.50 ± 0.71 |" in out
    run_sweep("--study=tuned", f"--runs={tmp_path}")
    assert len(workers.runs()) == 8 and capsys.readouterr().out == out
    run_sweep("--study=tuned", f"--runs={tmp_path}", "--seeds=3")
    assert len(workers.runs()) == 10


def test_tuning_waits_for_other_parts(run_sweep, workers, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(studies.STUDIES, "tuned", TUNED)
    run_sweep("--study=tuned", f"--runs={tmp_path}", "--shard=0/2")
    assert "2 tuning runs belong to other parts" in capsys.readouterr().out
    run_sweep("--study=tuned", f"--runs={tmp_path}", "--shard=1/2")
    assert "| b | 1.50 ± 0.71 |" in capsys.readouterr().out
    assert len(workers.runs()) == 6
    run_sweep("--study=tuned", f"--runs={tmp_path}", "--shard=0/2")
    assert "| a | 1.50 ± 0.71 |" in capsys.readouterr().out and len(workers.runs()) == 8


def test_flags_in_a_file_name_the_program(run_sweep, tmp_path, capsys):
    (tmp_path / "flags").write_text("--program=multimnist\n--grid=shift=4,6\n")
    run_sweep(f"--flagfile={tmp_path}/flags", "--dry_run", f"--runs={tmp_path}/runs")
    for shift, line in zip("46", capsys.readouterr().out.splitlines(), strict=True):
        assert line.startswith("python -m experiments.multimnist ") and f"--shift={shift}" in line


@pytest.mark.parametrize("name", [".", "/", ""])
def test_an_output_that_is_a_folder_is_refused_before_training(run_sweep, workers, tmp_path, name):
    output = name if name else str(tmp_path)
    with pytest.raises(UserError, match="is a folder"):
        run_sweep(GRID, f"--runs={tmp_path}/runs", f"--output={output}")
    assert not workers.groups


def test_the_dry_run_counts_tuning_runs_of_its_part(run_sweep, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(time_estimate, "estimate_seconds", lambda runs, defaults: 6000.0)
    arguments = ("--study=learned_coupling", "--dataset=digits", f"--runs={tmp_path}/runs")
    run_sweep(*arguments, "--dry_run", "--shard=0/16", "--jobs=2")
    out, err = capsys.readouterr()
    tune = out.count("--seed=1000")
    assert 0 < tune < 42 and f"; {tune} of them tune" in err and "50 min" in err


def test_the_command_can_be_given_to_a_shell_elsewhere(run_sweep, workers, tmp_path):
    given = [GRID, "--steps", "2", "--noreconstruction"]
    run_sweep(
        *given,
        "--runs",
        str(tmp_path / "here"),
        "--cache_dir=/there",
        "--jobs=2",
        f"--output={tmp_path}/new/table",
        "--vmap=off",
        "--yes",
    )
    text = (tmp_path / "new" / "table.md").read_text()
    command = read_json(tmp_path / "new" / "table.json")["command"]
    assert shlex.split(command) == ["python", "-m", "experiments.sweep", *given]
    assert text.endswith(f"`{command}`, commit abc\n") and str(tmp_path) not in text


def test_results_on_other_files_are_other_runs(run_sweep, capsys, monkeypatch):
    """Those of official affNIST are none of synthetic affNIST, in the same folder of runs."""
    monkeypatch.setattr(time_estimate, "estimate_seconds", lambda runs, defaults: None)

    def planned(*more):
        run_sweep("--program=affnist", "--grid=seed=0", "--runs=here", "--dry_run", *more)
        return capsys.readouterr().out.split("--workdir=")[1]

    assert planned() != planned("--affnist_dir=x") == planned("--affnist_dir=y")
    defaults = find_program("affnist").defaults
    for given in (["--affnist_dir=x"], ["--affnist_dir", "x"]):
        command = sweep.portable_command([*given, "--steps=2", "--compare=y"], defaults)
        assert command == "python -m experiments.sweep --affnist_dir=PATH --steps=2"


def test_command_line_names_the_program():
    assert sweep.program_of([]) == sweep.program_of(["--grid=program=x"]) == "mnist"
    assert sweep.program_of(["--seeds=3", "--program=abc"]) == "abc"
    assert sweep.program_of(["--program", "abc", "--study=routing"]) == "abc"
    assert sweep.program_of(["--study=table1"]) == "mnist"


TINY = [
    "--dataset=digits",
    "--preset=tiny",
    "--batch_size=8",
    "--noreconstruction",
    "--accelerator=cpu",
]


def start(tmp_path, *arguments):
    command = [
        sys.executable,
        "-m",
        "experiments.sweep",
        *TINY,
        f"--runs={tmp_path / 'runs'}",
        f"--cache_dir={tmp_path / 'cache'}",
        *arguments,
    ]
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def end(child):
    out, err = child.communicate()
    return subprocess.CompletedProcess([], child.returncode, out, err)


@pytest.mark.slow
def test_sweep_with_a_failing_run(tmp_path):
    arguments = [
        "--grid=learning_rate=0.001,1e30",
        "--steps=4",
        "--log_every=1",
        "--vmap=off",
        "--validation_fraction=0",
        f"--output={tmp_path / 'table'}",
    ]
    done = end(start(tmp_path, *arguments))
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    good, bad = ledger.read(tmp_path / "runs").values()
    if "error" in good:
        good, bad = bad, good
    assert bad["error"].startswith("error: the loss is ") and "exit status 2" in bad["error"]
    assert "1 of 2 runs failed: learning_rate=1e30," in done.stderr.splitlines()[-1]
    summary = good["summary"]
    assert f"| 0.001 | {summary['test_error']:.2f} |" in done.stdout
    right = unpack(good["correct"], summary["test_examples"])
    assert (~right).sum() == summary["test_errors"] and len(right) == 360
    (folder,) = (tmp_path / "runs").glob("learning_rate=0.001,*")
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = end(start(tmp_path, *arguments))
    assert again.returncode == 1 and again.stdout == done.stdout
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times


@pytest.mark.slow
def test_paths_are_relative_to_the_folder_of_the_user(tmp_path):
    """Modules are not: a file of the user that is named like one of ours is not run."""
    np.savez(tmp_path / "own.npz", **arrays((8, 8, 1), 3))
    (tmp_path / "experiments.py").write_text("raise SystemExit('a file of the user')")
    command = [sys.executable, "-P", "-m", "experiments.sweep", "--grid=seed=0", *TINY[1:]]
    command += ["--dataset=own.npz", "--steps=2", "--runs=runs", "--cache_dir=none"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    (entry,) = ledger.read(tmp_path / "runs").values()
    assert entry["summary"]["test_examples"] == 30


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_sweep_loses_only_the_run_in_progress(tmp_path, number):
    arguments = ["--grid=seed=0..2", "--steps=60", "--vmap=off", "--validation_fraction=0"]
    child = start(tmp_path, *arguments)
    book = tmp_path / "runs" / "ledger.jsonl"
    deadline = time.monotonic() + 300
    while not (
        book.exists()
        and len(ledger.read(book)) == 1
        and len(list((tmp_path / "runs").glob("*/metrics.jsonl"))) == 2
    ):
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.05)
    child.send_signal(number)
    done = end(child)
    assert done.returncode == (-9 if number == signal.SIGKILL else 130), done.stderr
    first = book.read_text()
    (finished,) = (json.loads(line)["key"] for line in first.splitlines())
    again = end(start(tmp_path, *arguments))
    assert again.returncode == 0, again.stderr
    assert book.read_text().startswith(first) and len(book.read_text().splitlines()) == 3
    assert len(ledger.read(book)) == 3 and finished in ledger.read(book)
    assert "| 3 |" in again.stdout


def test_an_unknown_program_is_reported_in_one_line():
    """The flags of the sweep depend on the program, so this is found before they are parsed."""
    done = run_command("sweep", "--program=mnits", "--grid=seed=0..1")
    said = "error: no program 'mnits'; did you mean mnist?\n"
    assert (done.returncode, done.stderr) == (2, said)
