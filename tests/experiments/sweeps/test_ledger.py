"""Ledgers: entries are kept, whole lines are written, and several processes may write."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from experiments.config import UserError
from experiments.files.bits import pack, unpack
from experiments.sweeps import ledger


def made_up(key, error=1.0, **more):
    summary = {"test_error": error, "wall_seconds": 9.0, "test_examples": 4, "test_correct": "kA=="}
    return ledger.success(key, summary | more, 1)


def test_appended_entries_are_read(tmp_path):
    path = tmp_path / "ledger.jsonl"
    assert ledger.read(tmp_path, path, tmp_path / "nowhere") == {}
    ledger.append(path, made_up("a", 1.5))
    ledger.append(path, ledger.failure("b", "the reason"))
    found = ledger.read(path)
    assert list(found) == ["a", "b"] and found["a"]["summary"]["test_error"] == 1.5
    assert found["b"]["error"] == "the reason" and "time" in found["b"]
    assert "test_correct" not in found["a"]["summary"] and found["a"]["correct"] == "kA=="


def test_time_is_shared_by_runs_trained_together():
    assert ledger.success("a", {"wall_seconds": 12.0}, 4)["seconds"] == 3.0


@pytest.mark.parametrize("count", [1, 8, 13, 10_000])
def test_packed_correctness_is_unpacked(count):
    correct = np.random.default_rng(count).random(count) < 0.9
    text = pack(correct)
    np.testing.assert_array_equal(unpack(text, count), correct)
    assert len(text) <= count / 6 + 4 and json.loads(json.dumps(text)) == text


def test_success_takes_precedence_over_the_last_failure(tmp_path):
    ledger.append(tmp_path / "ledger.0-of-2.jsonl", made_up("a"))
    for reason in ("first", "last"):
        ledger.append(tmp_path / "ledger.1-of-2.jsonl", ledger.failure("a", reason))
        ledger.append(tmp_path / "ledger.1-of-2.jsonl", ledger.failure("b", reason))
    found = ledger.read(tmp_path)
    assert "summary" in found["a"] and found["b"]["error"] == "last"


def test_ledgers_of_several_machines_are_joined_by_concatenation(tmp_path):
    parts = [tmp_path / name for name in ("one.jsonl", "two.jsonl")]
    for n, path in enumerate(parts):
        ledger.append(path, made_up(f"run {n}"))
    joined = tmp_path / "joined.jsonl"
    joined.write_bytes(b"".join(path.read_bytes() for path in parts))
    assert ledger.read(joined) == ledger.read(*parts)


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_truncated_line_is_skipped(tmp_path, kept):
    path = tmp_path / "ledger.jsonl"
    for name in "ab":
        ledger.append(path, made_up(name))
    first, second = path.read_bytes().splitlines()
    path.write_bytes(first + b"\n" + second[:kept])
    ledger.append(path, made_up("c"))
    assert list(ledger.read(path)) == ["a", "c"]


def test_invalid_ledgers_are_refused(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="can't be read as a ledger"):
        ledger.read(tmp_path)
    path.write_text('3\n[]\n{"other": 1}\n')
    assert ledger.read(tmp_path) == {}


def test_many_processes_append_whole_lines(tmp_path):
    path = tmp_path / "ledger.jsonl"
    code = textwrap.dedent(f"""
        import pathlib, sys
        from experiments.sweeps import ledger
        for n in range(50):
            entry = {{"key": f"{{sys.argv[1]}} {{n}}", "long": "x" * 20000}}
            ledger.append(pathlib.Path({str(path)!r}), entry)
    """)
    children = [subprocess.Popen([sys.executable, "-c", code, str(n)]) for n in range(3)]
    assert [child.wait() for child in children] == [0, 0, 0]
    lines = path.read_text().splitlines()
    assert len(lines) == len(ledger.read(path)) == 150
    assert all(len(json.loads(line)["long"]) == 20000 for line in lines)


BAD = [
    {"key": ["a"], "summary": {}},
    {"key": "b", "summary": "text"},
    {"key": "b", "summary": {"test_examples": 4e10}},
    {"key": "b", "summary": {"test_examples": 9}, "correct": "AA=="},
    {"key": "b", "summary": {"test_examples": 9}, "correct": "!"},
    {"key": "b", "summary": {}, "seconds": "1"},
    {"key": "b", "summary": {"test_error": -1}},
    {"key": "b", "error": 3},
]


@pytest.mark.parametrize("line", [*map(json.dumps, BAD), "[" * 10**5, "{}", "\0"], ids=range(11))
def test_what_is_no_entry_is_left_out_and_said(tmp_path, line, capsys):
    path = tmp_path / "ledger.jsonl"
    ledger.append(path, made_up("a"))
    path.write_text(f"\ufeff{line}\n" + path.read_text())
    assert list(ledger.read(path)) == list(ledger.read(path)) == ["a"]
    said = capsys.readouterr().err
    assert said.count("line 1 is left out") == 1 and said.count("\n") == 1


def test_own_results_win_and_differences_are_said(capsys):
    own = {"a": made_up("a", 24.0), "b": ledger.failure("b", "x"), "c": made_up("c", 1.0)}
    theirs = {"a": made_up("a", 0.01), "b": made_up("b", 3.0), "d": made_up("d", 4.0)}
    theirs["c"] = made_up("c", 1.0)
    found = ledger.merge(own, theirs)
    errors = {key: entry["summary"]["test_error"] for key, entry in found.items()}
    assert errors == {"a": 24.0, "b": 3.0, "c": 1.0, "d": 4.0}
    assert (
        capsys.readouterr().err == "--merge: the own result is kept: a: own 24.00%, theirs 0.01%\n"
    )


def test_equal_arrays_at_another_place_have_the_same_runs():
    keys = [f"mnist '--dataset=/{n} x.npz' --seed=1" for n in "ab"]
    keys += ["mnist '--dataset=/a x.npz'"]
    entries = {key: made_up(key, data_checksum=c) for key, c in zip(keys, "112", strict=True)}
    found = ledger.with_path_of("1", "/new.npz", entries)
    assert list(found) == ["mnist --dataset=/new.npz --seed=1", keys[2]]
    assert all(entry["key"] == key for key, entry in found.items())
    assert ledger.with_path_of("", "/new.npz", entries) == entries
    new = "mnist --dataset=/new.npz --seed=1"
    found = ledger.with_path_of("1", "/new.npz", {new: ledger.failure(new, "full")} | entries)
    assert found[new] == entries[keys[0]] | {"key": new}, "a success comes before a failure"


def test_a_ledger_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "ledger.jsonl").symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match="is a link"):
        ledger.append(tmp_path / "ledger.jsonl", made_up("a"))
    assert not (tmp_path / "victim").exists()
