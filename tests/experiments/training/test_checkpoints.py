"""Checkpoints: checksums, what is done about damage, and copies of the rows of metrics.jsonl."""

import dataclasses
import hashlib
import json
import shutil

import jax
import numpy as np
import pytest
from helpers import QUICK, metrics_rows, prepare_run, read_json, train

from experiments.config import UserError
from experiments.training import checkpoint_names
from experiments.training.checkpoints import Checkpoints, damage_of, has_checkpoints
from experiments.training.metrics import scan
from experiments.training.setup import initial_state


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished") / "run"
    config = dataclasses.replace(QUICK, workdir=str(workdir), steps=4, validate_every=2)
    train(config)
    return config, workdir, initial_state(prepare_run(config))


@pytest.fixture
def copy(finished, tmp_path):
    _, workdir, _ = finished
    return shutil.copytree(workdir, tmp_path / "run")


def restored(workdir, state, **options):
    with Checkpoints(workdir, **options) as opened:
        return opened.latest(), jax.device_get(opened.restore(state))


def test_every_file_with_numbers_has_its_sha256(finished):
    _, workdir, _ = finished
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["2", "4"]
    for step in "24":
        folder = workdir / "checkpoints" / step
        stored = read_json(folder / "checksums.json")
        files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        assert files - stored.keys() <= {
            "checksums.json",
            "_CHECKPOINT_METADATA",
            "commit_success.txt",
        }
        for name, digest in stored.items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert rows[-1]["step"] == int(step)


def test_every_file_is_hashed_once(finished, tmp_path, monkeypatch):
    _, _, state = finished
    hashed = []

    def count(path):
        hashed.append(path.name)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(checkpoint_names, "sha256", count)
    with Checkpoints(tmp_path) as opened:
        opened.save(state, 1)
    assert list(tmp_path.rglob("checksums.json")) == [tmp_path / "checkpoints/1/checksums.json"]
    files = read_json(tmp_path / "checkpoints" / "1" / "checksums.json")
    assert len(hashed) == len(files) > 5


def flip(path, share):
    data = bytearray(path.read_bytes())
    data[int(share * (len(data) - 1))] ^= 16
    path.write_bytes(data)


def test_a_flipped_byte_anywhere_sets_the_checkpoint_aside(finished, copy, capsys):
    _, _, state = finished
    wanted = restored(copy, state)
    before = (copy / "checkpoints" / "2" / "checksums.json").read_text()
    names = list(read_json(copy / "checkpoints" / "4" / "checksums.json")) + ["checksums.json"]
    for name in names:
        for share in (0, 0.3, 1):
            path = copy / "checkpoints" / "4" / name
            flip(path, share)
            assert damage_of(copy / "checkpoints" / "4"), (name, share)
            flip(path, share)
    assert not damage_of(copy / "checkpoints" / "4")
    flip(max((copy / "checkpoints" / "4").rglob("d/*"), key=lambda p: p.stat().st_size), 0.5)
    step, _ = restored(copy, state, read_only=True)
    assert step == 2 and (copy / "checkpoints" / "4").exists()
    assert "checkpoint 4 is damaged" in capsys.readouterr().err
    assert restored(copy, state)[0] == 2
    assert (copy / "checkpoints" / "4.damaged").exists()
    assert (copy / "checkpoints" / "2" / "checksums.json").read_text() == before
    assert wanted[0] == 4


def test_training_again_from_the_one_before_gives_the_same_bits(finished, copy):
    config, workdir, state = finished
    wanted = restored(workdir, state)
    next((copy / "checkpoints" / "4").rglob("d/*")).unlink()
    train(dataclasses.replace(config, workdir=str(copy)))
    got = restored(copy, state)
    jax.tree.map(np.testing.assert_array_equal, got, wanted)
    assert metrics_rows(copy) == metrics_rows(workdir)


def test_checkpoints_of_older_versions_are_read(finished, copy):
    _, workdir, state = finished
    wanted = restored(workdir, state)
    for name in ("checksums.json", "metrics.jsonl"):
        (copy / "checkpoints" / "4" / name).unlink()
    with Checkpoints(copy) as opened:
        assert opened.rows() is None
    jax.tree.map(np.testing.assert_array_equal, restored(copy, state), wanted)
    shutil.rmtree(copy / "checkpoints" / "4" / "default")
    assert damage_of(copy / "checkpoints" / "4") == "it is incomplete"


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "commit_success.txt"])
@pytest.mark.parametrize("content", [None, b"", b"\xff\x00["])
def test_files_without_numbers_are_not_needed(finished, copy, name, content):
    _, workdir, state = finished
    path = copy / "checkpoints" / "4" / name
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)
    jax.tree.map(np.testing.assert_array_equal, restored(copy, state), restored(workdir, state))


def test_links_and_files_in_place_of_folders_are_refused(finished, copy):
    config, workdir, _ = finished
    shutil.move(copy / "checkpoints", copy / "moved")
    assert not has_checkpoints(dataclasses.replace(config, workdir=str(copy)))
    (copy / "checkpoints").symlink_to(workdir / "checkpoints")
    with pytest.raises(UserError, match="is a link"):
        train(dataclasses.replace(config, workdir=str(copy)))
    (copy / "checkpoints").unlink()
    (copy / "checkpoints").write_text("")
    with pytest.raises(UserError, match="in the way"):
        Checkpoints(copy)


LINE = b'{"step": 1, "epoch": 0.5, "seconds": 1.0, "loss": 2.0}\n'
BAD = [b"\n", b"5\n", b"null\n", b"[]\n", b"\xff\xfe\n", b"{}\n", b"[" * 10**5 + b"\n", LINE]
BAD += [b'{"step": 1, "epoch": 0.5, "seconds": "x"}\n', b'{"step": -1e400}\n']
BAD += [b'{"step": true}\n']
BAD += [b'{"step": 1, "epoch": 0.5, "seconds": 1, "loss": "x"}\n']
BAD += [b'{"step": 1' + b"0" * 99 + b"}\n"]


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_what_is_no_row_is_left_out_and_said(bad):
    rows, damage = scan(b"\xef\xbb\xbf" + LINE + bad + LINE.replace(b'"step": 1', b'"step": 2'))
    assert [row["step"] for row in rows] == [1, 2]
    assert damage.startswith("line 2 (") and "\n" not in damage


def test_a_line_cut_off_by_a_kill_is_no_damage():
    assert scan(LINE + LINE[:20]) == ([json.loads(LINE)], "")


@pytest.mark.parametrize("damage", ["missing", "empty", "half", "binary", "twice"])
def test_metrics_and_summary_come_back_from_the_checkpoint(finished, copy, damage, capsys):
    config, workdir, _ = finished
    path = copy / "metrics.jsonl"
    data = path.read_bytes()
    path.unlink()
    new = {"empty": b"", "half": data[: len(data) // 2], "binary": b"\0\xff" * 99}
    new |= {"twice": data + data, "missing": None}
    if new[damage] is not None:
        path.write_bytes(new[damage])
    (copy / "summary.json").write_bytes(b"[1")
    train(dataclasses.replace(config, workdir=str(copy)))
    assert path.read_bytes() == data
    assert f"{path} is repaired" in capsys.readouterr().err
    got, want = (read_json(w / "summary.json") for w in (copy, workdir))
    for name in set(want) - {"wall_seconds", "peak_memory_mb"}:
        assert got[name] == want[name], name
