"""Compiled programs that have changed since they were written are removed and compiled again."""

import hashlib
import json
import os
import time

import pytest

from experiments.config import UserError
from experiments.files import check_programs
from experiments.files.compiled import CHECKSUMS

DAY_AGO = time.time() - 86400
CONTENTS = {"a-cache": b"first", "b-cache": b"second", "c-cache": b""}


@pytest.fixture
def seen(tmp_path):
    """A cache that has been checked once."""
    for name, content in CONTENTS.items():
        (tmp_path / name).write_bytes(content)
        os.utime(tmp_path / name, (DAY_AGO, DAY_AGO))
    check_programs(tmp_path)
    return tmp_path


def entries(folder):
    return sorted(path.name for path in folder.glob("*-cache"))


def test_checksums_are_recorded_and_nothing_is_said(seen, capsys):
    want = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENTS.items()}
    assert json.loads((seen / CHECKSUMS).read_text()) == want
    check_programs(seen)
    assert entries(seen) == sorted(CONTENTS) and not capsys.readouterr().err


def test_exchanged_entries_are_removed_and_said_once(seen, capsys):
    (seen / "a-cache").rename(seen / "x")
    (seen / "b-cache").rename(seen / "a-cache")
    (seen / "x").rename(seen / "b-cache")
    check_programs(seen)
    said = capsys.readouterr().err
    assert entries(seen) == ["c-cache"] and said.startswith("2 compiled programs")
    assert said.count("\n") == 1
    check_programs(seen)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("new", [b"", b"firsu", b"first, and more"])
def test_an_entry_with_other_bytes_is_removed(seen, new):
    (seen / "a-cache").write_bytes(new)
    check_programs(seen)
    assert entries(seen) == ["b-cache", "c-cache"]
    (seen / "a-cache").write_bytes(b"compiled again")
    check_programs(seen)
    assert "a-cache" in entries(seen)


def test_an_entry_that_may_be_being_written_is_not_recorded(seen):
    (seen / "d-cache").write_bytes(b"ha")
    check_programs(seen)
    (seen / "d-cache").write_bytes(b"half, and the rest")
    check_programs(seen)
    assert "d-cache" in entries(seen)


@pytest.mark.parametrize("damage", [b"", b"[1]", b'{"a-cache": 1}', b"[" * 10**5, None])
def test_damaged_checksums_are_written_again(seen, damage):
    before = (seen / CHECKSUMS).read_bytes()
    (seen / CHECKSUMS).unlink()
    if damage is not None:
        (seen / CHECKSUMS).write_bytes(damage)
    check_programs(seen)
    assert (seen / CHECKSUMS).read_bytes() == before and entries(seen) == sorted(CONTENTS)


def test_no_cache_is_no_error(tmp_path):
    check_programs(tmp_path / "missing")
    check_programs(tmp_path)
    assert not (tmp_path / CHECKSUMS).exists()


def test_what_can_not_be_removed_is_one_line(seen, monkeypatch):
    (seen / "a-cache").write_bytes(b"other")

    def unlink(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.unlink", unlink)
    with pytest.raises(UserError, match="can't be removed"):
        check_programs(seen)
