"""Plans: from grids and studies to runs, and errors before the first run starts."""

import dataclasses
import pathlib
import shlex
import subprocess

import pytest
from helpers import MNIST

from capsjax.routing import ROUTINGS
from experiments.config import UserError
from experiments.config.flags import parse_flags
from experiments.sweeps import grouping, plan
from experiments.sweeps.grid import parse_grid
from experiments.sweeps.studies import STUDIES, Study, product
from experiments.tasks import registry

FOLDER = pathlib.Path("/f")


def make(study, given=None, seeds=None, tuned=None):
    tuned = tuned or {row: [{}] for row in study.rows}
    seeds = study.seeds if seeds is None else seeds
    defaults = registry.find_program(study.program).defaults
    return plan.make(study, given or {}, FOLDER, defaults, tuned, seeds)


def grid(text, **given):
    return make(plan.find_study(None, text), given)


@pytest.mark.parametrize(
    "text, want",
    [
        ("seed=0", {"seed": ("0",)}),
        ("routing=em,vb;seed=0,1", {"routing": ("em", "vb"), "seed": ("0", "1")}),
        ("learning_rate=1e-3,0.01", {"learning_rate": ("1e-3", "0.01")}),
        (
            "seed=1; routing=em, vb ;depth=1",
            {"seed": ("1",), "routing": ("em", "vb"), "depth": ("1",)},
        ),
        ("seed=0..4", {"seed": tuple("01234")}),
        ("seed=7,1..3;depth=2..2", {"seed": tuple("7123"), "depth": ("2",)}),
    ],
)
def test_parse_grid(text, want):
    got = parse_grid(text)
    assert got == want and list(got) == list(want)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "seed",
        "seed=",
        "seed=0,",
        "seed=,0",
        "=1",
        "seed=0;",
        ";",
        "seed=0;routing",
        "seed=0;seed=1",
        "seed=0,0",
        "workdir=here",
        "seed=4..0",
        "seed=0..2,1",
        "seed=0..9999999999",
        "seed=0..999999999999999999",
    ],
)
def test_invalid_grids_are_refused(text):
    with pytest.raises(UserError, match="--grid="):
        parse_grid(text)


def test_a_range_beyond_all_integers_is_a_text():
    text = f"0..{'9' * 5000}"
    assert parse_grid(f"seed={text}") == {"seed": (text,)}


def test_find_study():
    assert plan.find_study("routing", None) == STUDIES["routing"]
    assert STUDIES["routing"].axes == ("routing",)
    assert [p["routing"] for p in STUDIES["routing"].rows.values()] == list(ROUTINGS)
    assert plan.find_study("routing", None, seeds=2).seeds == ("0", "1")
    made = plan.find_study(None, "depth=1,2;votes=full;seed=3..5")
    assert made.seeds == ("3", "4", "5") and made.axes == ("depth",)
    assert made.rows == {
        "depth=1": {"depth": "1", "votes": "full"},
        "depth=2": {"depth": "2", "votes": "full"},
    }
    assert plan.find_study(None, "depth=1,2;seed=3..5", seeds=1).seeds == ("0",)
    assert plan.find_study(None, "seed=0,1").rows == {"": {}}


@pytest.mark.parametrize(
    "name, text, message",
    [
        (None, None, r"give either --study=table1\|routing.* or --grid"),
        ("routing", "seed=0", "give either --study.* or --grid"),
        ("routin", None, "--study=routin: the studies are table1, .*; did you mean routing?"),
        (None, "seed=0..9999", "10,000 runs; to run all of them, add --yes"),
        (None, "seed=0..20;depth=1..10", "210 runs"),
    ],
)
def test_invalid_studies_are_refused(name, text, message):
    with pytest.raises(UserError, match=message):
        plan.find_study(name, text)


def test_many_runs_need_confirmation():
    assert len(plan.find_study(None, "seed=0..9999", yes=True).seeds) == 10_000
    with pytest.raises(UserError, match="210 runs"):
        plan.find_study(None, "depth=1..10", seeds=21)
    with pytest.raises(UserError, match="runs; to run all of them"):
        plan.find_study("routing", None, seeds=20)


def test_runs():
    runs = grid("routing=dynamic,uniform;seed=0,1", dataset="digits", steps=2)
    assert [(r.row, r.seed) for r in runs] == [
        (f"routing={r}", s) for r in ("dynamic", "uniform") for s in "01"
    ]
    first, last = runs[0], runs[3]
    assert first.key == "python -m experiments.mnist --dataset=digits --steps=2"
    assert last.key == (
        "python -m experiments.mnist --dataset=digits --routing=uniform --steps=2 --seed=1"
    )
    assert last.workdir.parent == FOLDER
    assert last.workdir.name.startswith("routing=uniform,seed=1,")
    assert len({r.workdir for r in runs}) == len({r.key for r in runs}) == 4
    assert last.arguments == (
        "--dataset=digits",
        "--steps=2",
        "--routing=uniform",
        "--seed=1",
        f"--workdir={last.workdir}",
    )
    for run in runs:
        assert parse_flags(MNIST, list(run.arguments)) == run.config


def test_run_key_depends_only_on_what_decides_the_result():
    def key(**given):
        (run,) = grid("seed=3", **given)
        return run.key

    assert key() == key(cache_dir="x", accelerator="cpu", log_every=5) == key(init="lecun")
    assert key(learning_rate="0.01") == key(learning_rate="1e-2") != key()
    assert len({key(), key(epochs=3), key(steps=3), key(dataset="digits")}) == 4


def test_a_row_comes_before_a_flag():
    """The command refuses flags that rows set; tuning sets a seed of its own."""
    (run,) = grid("seed=3", seed=1, epochs=2)
    assert (run.config.seed, run.config.epochs, run.seed) == (3, 2, "3")
    (run,) = grid("depth=1", seed=4)
    assert run.config.seed == 4 and run.seed == "4"


def test_frozen_runs_take_the_couplings_of_the_run_that_is_the_same_otherwise():
    runs = grid("votes=full,conv;routing=frozen,dynamic;seed=0,1")
    assert [r.config.routing for r in runs] == ["dynamic"] * 4 + ["frozen"] * 4
    for run in runs[4:]:
        (source,) = (r for r in runs[:4] if str(r.workdir) == run.config.frozen_from)
        same = dataclasses.replace(run.config, routing="dynamic", frozen_from="")
        assert dataclasses.replace(source.config, workdir="") == dataclasses.replace(
            same, workdir=""
        )
        assert f"--frozen_from={source.workdir}" in run.arguments
    given = [grid("routing=frozen", frozen_from=f"/{place}")[0] for place in ("a b", "c")]
    assert [run.config.frozen_from for run in given] == ["/a b", "/c"]
    assert given[0].key != given[1].key and given[0].workdir != given[1].workdir
    assert shlex.split(given[0].key)[-1] == "--frozen_from=/a b"
    assert not any("frozen_from" in run.key for run in runs), "which are the same anywhere"


@pytest.mark.parametrize("name", STUDIES)
def test_every_run_of_every_study_has_legal_flags(name):
    study = STUDIES[name]
    runs = make(study, tuned=plan.candidates(study) if study.tuning else None)
    assert {run.row for run in runs} == set(study.rows)
    assert {run.config.program for run in runs} == {study.program}
    if study.group_by:
        assert all(study.group_by in point for point in study.rows.values())


@pytest.mark.parametrize(
    "text, given, message",
    [
        ("no_such_flag=1", {}, "no_such_flag"),
        ("flagfile=a,b", {}, "flagfile"),
        ("routin=em", {}, "routin.*routing"),
        ("routing=em,dynamc", {}, "--routing=dynamc.*did you mean dynamic"),
        ("seed=0,x", {}, "--seed=x"),
        ("depth=-1", {}, "--depth=-1"),
        ("reconstruction=perhaps", {}, "--reconstruction=perhaps"),
        ("routing=em,vb", {"model": "cnn"}, "--routing applies only to capsule"),
        ("model=cnn,capsnet", {"preset": "deep"}, "--model=cnn has no --preset=deep"),
        ("votes=conv,matrix", {"preset": "tiny"}, "matri"),
        ("routing=frozen,em", {}, "routing=frozen.*add a row.*--frozen_from"),
        ("learning_rate=1e-3,0.001", {}, "describe the same run"),
        ("routing=em,vb", {"routing_prior": "learned"}, "has no prior"),
    ],
)
def test_unknown_flags_of_a_program_are_refused(text, given, message):
    with pytest.raises(UserError, match=message):
        grid(text, **given)


TUNED = Study(
    {
        "a": {"routing": "em"},
        "b": {"routing": "uniform"},
        "f": {"routing": "frozen"},
        "d": {"routing": "dynamic"},
    },
    seeds=("0", "1"),
    tuning={"learning_rate": ("0.001", "0.01"), "decay_rate": ("0.9",)},
)


def test_names_of_folders_have_a_length_that_systems_take():
    runs = grid(f"freeze={'é' * 300},{'é' * 299}")
    assert len({run.workdir for run in runs}) == 2
    assert all(len(run.workdir.name.encode()) < 200 for run in runs)


def test_tuning_tries_all_values_with_a_seed_of_its_own():
    tuned = plan.candidates(TUNED._replace(rows={"a": {}, "b": {"routing": "uniform"}}))
    assert (
        tuned["a"]
        == [
            {"learning_rate": "0.001", "decay_rate": "0.9"},
            {"learning_rate": "0.01", "decay_rate": "0.9"},
        ]
        == tuned["b"]
    )
    assert plan.TUNING_SEED not in {seed for study in STUDIES.values() for seed in study.seeds}


def test_the_smallest_validation_error_is_chosen():
    runs = make(
        TUNED, tuned=plan.candidates(TUNED), seeds=(plan.TUNING_SEED,), given={"votes": "conv"}
    )
    scores = {
        ("b", "0.001"): (2.0, 0.5),
        ("b", "0.01"): (1.0, 0.9),
        ("d", "0.001"): (1.0, 0.2),
        ("d", "0.01"): (1.0, 0.1),
        ("f", "0.001"): (3.0, 0.0),
    }
    entries = {
        r.key: {"summary": dict(zip(("validation_error", "validation_loss"), score))}
        for r in runs
        if (score := scores.get((r.row, r.tuned["learning_rate"])))
    }
    unseen = {runs[0].key: {"summary": {"validation_error": None, "validation_loss": None}}}
    with pytest.raises(UserError, match="tuning needs validation images"):
        plan.choose(runs, entries | unseen)
    got = plan.choose(runs, entries)
    assert {row: t["learning_rate"] for row, (t,) in got.items()} == {
        "b": "0.01",
        "d": "0.01",
        "f": "0.001",
    }, "rows none of whose runs succeeded are missing"
    # Frozen couplings are those of the best dynamic run, whatever its learning rate.
    final = make(TUNED, tuned=got)
    source = {str(r.workdir): r for r in final if r.row == "d"}
    frozen = [r for r in final if r.row == "f"]
    assert len(frozen) == 2
    for run in frozen:
        taken = source[run.config.frozen_from]
        assert (taken.seed, taken.config.learning_rate) == (run.seed, 0.01)
        assert run.config.learning_rate == 0.001
    # With couplings of another run of the same flags it is another run, in another folder.
    best = got | {"d": [plan.candidates(TUNED)["d"][0]]}
    same = {r.seed: r for r in make(TUNED, tuned=best) if r.row == "f"}
    assert got["f"] == best["d"] and not any("frozen_from" in r.key for r in same.values())
    again = [r for r in make(TUNED, tuned=got) if r.row == "f"]
    assert [r.key for r in again] == [r.key for r in frozen]
    for run in frozen:
        other = same[run.seed]
        assert run.key != other.key and run.workdir != other.workdir
        assert f"--workdir={run.workdir}" in run.arguments
        assert sum(word.startswith("--workdir=") for word in run.arguments) == 1


def test_parts_of_a_sweep_cover_all_runs():
    runs = grid("votes=full,conv;routing=dynamic,frozen,em;seed=0..3")
    for parts in (1, 2, 3, 5, 16, 40):
        shares = [plan.part(runs, n, parts) for n in range(parts)]
        assert sorted(r.key for share in shares for r in share) == sorted(r.key for r in runs)
        for share in shares:
            folders = {r.config.workdir for r in share}
            assert all(not r.config.frozen_from or r.config.frozen_from in folders for r in share)
    units = [sum(not r.config.frozen_from for r in plan.part(runs, n, 4)) for n in range(4)]
    assert units == [4, 4, 4, 4], "neighbours, which can be trained together, stay together"


def names(parts):
    return [[run.seed for run in part] for part in parts]


def test_groups(monkeypatch):
    runs = grid("learning_rate=0.001,0.01;seed=0..2", preset="tiny", batch_size=8)
    assert names(grouping.divide(runs, MNIST, "off", set())) == [[s] for s in "012012"]
    assert names(grouping.divide(runs, MNIST, "4", set())) == [list("0120"), list("12")]
    monkeypatch.setattr(grouping, "platform", lambda accelerator: "gpu")
    assert names(grouping.divide(runs, MNIST, "auto", set())) == [list("012012")]
    assert names(grouping.divide(runs, MNIST, "auto", set(), jobs=2)) == [
        list("012"),
        list("012"),
    ], "a part for each process"
    alone = {runs[1].key}
    assert sorted(names(grouping.divide(runs, MNIST, "9", alone))) == [list("02012"), ["1"]]
    runs = grid("routing=dynamic,frozen,em;seed=0,1", preset="tiny", batch_size=8)
    assert names(grouping.divide(runs, MNIST, "9", set())) == [
        list("01"),
        list("01"),
        ["0"],
        ["1"],
    ], "other networks and frozen runs apart"
    # On CPU nothing was gained.
    monkeypatch.setattr(grouping, "platform", lambda accelerator: "cpu")
    runs = grid("seed=0,1", preset="tiny")
    assert names(grouping.divide(runs, MNIST, "auto", set())) == [["0"], ["1"]]


def test_platform(monkeypatch):
    assert grouping.platform("tpu") == "tpu"
    for out, want in (("gpu\n", "gpu"), ("", "cpu")):
        done = subprocess.CompletedProcess([], 0, out)
        monkeypatch.setattr(subprocess, "run", lambda words, done=done, **_: done)
        grouping.platform.cache_clear()
        assert grouping.platform("auto") == want
    grouping.platform.cache_clear()


def test_studies_may_be_unions():
    rows = STUDIES["official_switches"].rows
    assert list(rows)[0] == "recipe=paper" and list(rows)[-1] == "recipe=official"
    assert len(rows) == 8 and rows["primary_scale=official"] == {"primary_scale": "official"}
    assert len(STUDIES["table1"].rows) == 5 and len(STUDIES["multimnist"].rows) == 3
    study = product({"a": ("1", "2"), "b": ("3",)}, ("0",))
    assert study.axes == ("a",) and study.rows["a=2"] == {"a": "2", "b": "3"}
