"""The command compare."""

import json

import numpy as np
import pytest
from helpers import read_json
from scipy import stats

from experiments import compare
from experiments.config import UserError
from experiments.files.bits import pack

IMAGES = 500


def summary(right, seed=0, flags="--model=cnn", **changes):
    wrong = int((~right).sum())
    return {
        "program": "mnist",
        "command": f"python -m experiments.mnist {flags} --seed={seed}",
        "seed": seed,
        "data_checksum": "c",
        "test_examples": len(right),
        "test_errors": wrong,
        "test_error": 100 * wrong / len(right),
        "test_correct": pack(right),
    } | changes


@pytest.fixture
def written(tmp_path):
    def write(name, values):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(values))
        return str(path)

    return write


def drawn(seed, error):
    return np.random.default_rng(seed).uniform(size=IMAGES) >= error


def test_one_seed_each(written, tmp_path, capsys):
    """McNemar's test and the interval of the mean of differences, from the images themselves."""
    a, b = drawn(0, 0.3), drawn(1, 0.2)
    places = written("a", summary(a)), written("b", summary(b, flags="--preset=small"))
    compare.main(compare.Flags(output=str(tmp_path / "out")), *places)
    first, second = read_json(tmp_path / "out.json")["rows"]
    assert "difference" not in first and first["name"] == "mnist --model=cnn"
    difference = 100.0 * (a.astype(int) - b.astype(int))
    assert second["difference"] == pytest.approx(difference.mean())
    half = stats.norm.ppf(0.975) * difference.std() / np.sqrt(IMAGES)
    exact = [difference.mean() - half, difference.mean() + half]
    np.testing.assert_allclose(second["difference_interval"], exact)
    wins, losses = int((b & ~a).sum()), int((a & ~b).sum())
    assert (second["wins"], second["losses"]) == (wins, losses)
    assert second["p"] == pytest.approx(stats.binomtest(wins, wins + losses).pvalue)
    assert second["verdict"] == "one seed"
    out = capsys.readouterr().out
    assert f"| {wins} and {losses} |" in out and "| mnist --preset=small |" in out
    assert read_json(tmp_path / "out.json")["command"] == "python -m experiments.compare RUN RUN"


def test_transformed_digits(written, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = []
    for n, flags in enumerate(("--model=cnn", "--preset=small")):
        moved = {name.replace("test", "affnist"): v for name, v in summary(drawn(n, 0.4)).items()}
        good = summary(drawn(9, 0.1), flags=flags, program="affnist", affnist="official affNIST")
        names.append(written(f"run{n}", moved | good).rpartition("/")[2])
    compare.main(compare.Flags(images="affnist", output="out"), *names)
    found = read_json(tmp_path / "out.json")
    wanted = "python -m experiments.compare run0.json run1.json --images=affnist"
    assert found["command"] == wanted
    errors = [100 * (~drawn(n, 0.4)).mean() for n in range(2)]
    assert [row["mean"] for row in found["rows"]] == pytest.approx(errors)
    assert found["rows"][1]["wins"] == (drawn(1, 0.4) & ~drawn(0, 0.4)).sum()
    assert "| affNIST error, % |" in (tmp_path / "out.md").read_text()
    compare.main(compare.Flags(), *names)  # the same translated digits are right
    first, second = (read_json(tmp_path / name) for name in names)
    moved = {"command": "python -m experiments.affnist --placement=canvas --seed=0"}
    placed = written("placed", second | moved)
    compare.main(compare.Flags(images="affnist"), names[0], placed)
    with pytest.raises(UserError, match="other test images .*placement=canvas"):
        compare.main(compare.Flags(), names[0], placed)
    synthetic = written("synthetic", second | {"affnist": "synthetic affNIST"})
    compare.main(compare.Flags(), names[0], synthetic)
    with pytest.raises(UserError, match="other test images .*affnist=synthetic affNIST"):
        compare.main(compare.Flags(images="affnist"), names[0], synthetic)
    other = summary(drawn(2, 0.4), flags="x")
    with pytest.raises(UserError, match="has no 'affnist_error'"):
        compare.main(compare.Flags(images="affnist"), names[0], written("no", other))


def test_several_seeds(written, tmp_path):
    rows = []
    for name, error in (("a", 0.3), ("b", 0.1)):
        runs = [summary(drawn(10 * seed + len(rows), error), seed) for seed in range(3)]
        rows.append(",".join(written(f"{name}{n}", run) for n, run in enumerate(runs)))
    first, second = compare.measure([compare.read_row(row) for row in rows])
    errors = [np.array(row["test_errors"]) for row in (first, second)]
    half = stats.t.ppf(0.975, 2) * (errors[1] - errors[0]).std(ddof=1) / np.sqrt(3)
    middle = (errors[1] - errors[0]).mean()
    np.testing.assert_allclose(second["difference_interval"], [middle - half, middle + half])
    assert second["verdict"] == "better" and second["seeds"] == [0, 1, 2]
    own = stats.t.interval(0.95, 2, errors[1].mean(), stats.sem(errors[1]))
    np.testing.assert_allclose(second["interval"], own)


def test_commas_in_names_and_flags_without_part_in_the_result(written):
    """As the folders of sweeps are named, and as runs on other machines are started."""
    flags_of_others = ("--model=cnn --log_every=5", "--accelerator=cpu --model=cnn")
    places = [written("seed=0,a1", summary(drawn(0, 0.3)))]
    for seed, flags in enumerate(flags_of_others, 1):
        places.append(written(f"seed={seed},b{seed}", summary(drawn(seed, 0.3), seed, flags)))
    assert set(compare.read_row(",".join(places))) == {0, 1, 2}


def test_holm_over_rows(written):
    a, b, c = (summary(drawn(n, e)) for n, e in enumerate((0.3, 0.27, 0.2)))
    together = compare.measure([{0: one} for one in (a, b, c)])
    (_, alone), (_, other) = (compare.measure([{0: a}, {0: one}]) for one in (b, c))
    p = sorted((alone["p"], other["p"]))
    assert sorted(row["p"] for row in together[1:]) == [min(2 * p[0], 1), max(2 * p[0], p[1])]


def test_rows_that_can_not_be_compared(written, tmp_path):
    def fails(*places):
        with pytest.raises(UserError) as error:
            compare.main(compare.Flags(), *places)
        return str(error.value)

    good = summary(drawn(0, 0.3))
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps(good))
    assert "one run is named twice" in fails(str(folder), written("copy", good))
    a, b = written("a", good), written("b", summary(drawn(1, 0.3), 1))
    assert "two different runs" in fails(a) == fails(a, a)
    assert "no finished run" in fails(a, str(tmp_path / "none"))
    assert "no finished run" in fails(a, str(tmp_path))
    assert "no seed that the first row has" in fails(a, b)
    assert "two runs with seed 0" in fails(a, f"{b},{written('c', good)},{a}")
    other = written("d", summary(drawn(2, 0.3), 2, flags="--model=cnn --epochs=9"))
    assert "more than the seed" in fails(a, f"{b},{other}")
    other = written("d", summary(drawn(2, 0.3), 2, data_checksum="d"))
    assert "more than the seed" in fails(a, f"{b},{other}")
    for name, value in (("data_checksum", "d"), ("program", "affnist"), ("shift", 6)):
        given = written("e", good | {"shift": 4} if name == "shift" else good)
        assert f"other test images than {given}: {name}=" in fails(
            given, written("f", good | {name: value})
        )
    moved = good | {"command": "python -m experiments.affnist --placement=canvas"}
    assert "placement=canvas" in fails(a, written("g", moved))
    compare.main(compare.Flags(), a, written("h", good | {"data_checksum": ""}))
    bad = written("i", {k: v for k, v in good.items() if k != "test_correct"})
    assert "has no 'test_correct'" in fails(a, bad)
    for name, value in (
        ("command", "x"),
        ("command", "a 'b"),
        ("test_correct", "AA=="),
        ("seed", "1"),
    ):
        assert "no finished run" in fails(a, written("j", good | {name: value}))
    assert "no finished run" in fails(a, written("k", good | {"test_correct": "!"}))
