"""The one writer, text made harmless, and limits."""

import os
import re
import stat
import subprocess
import sys

import pytest
from helpers import ROOT

from experiments import UserError
from experiments.files import (
    check_addresses,
    check_folder,
    check_memory,
    check_private,
    formula_free,
    fresh,
    html,
    limits,
    local_path,
    one_line,
    size,
    split_paths,
    write_json,
    write_text,
)
from experiments.files.limits import free_bytes, make_private
from experiments.plots.text_tables import comma_separated, latex, markdown


def test_links_are_replaced_and_their_targets_left_alone(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("before")
    (tmp_path / "out.json").symlink_to(victim)
    (tmp_path / f".out.json.{os.getpid()}").symlink_to(victim)
    write_json(tmp_path / "out.json", {"a": 1})
    assert victim.read_text() == "before" and not (tmp_path / "out.json").is_symlink()
    assert (tmp_path / "out.json").read_text() == '{\n  "a": 1\n}\n'


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(KeyError), fresh(tmp_path / "a.txt") as temporary:
        assert temporary.suffix == ".txt" and temporary.parent == tmp_path
        temporary.write_text("half")
        raise KeyError
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"
    with pytest.raises(UserError, match="is a folder"):
        write_text(tmp_path, "")


def test_permissions_are_those_of_the_umask(tmp_path):
    write_text(tmp_path / "a", "")
    open(tmp_path / "b", "w").close()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"}
    assert len(modes) == 1


@pytest.mark.parametrize("name", ["checkpoints", "figures", "tensorboard", "profile", ".lock"])
def test_parts_of_a_run_are_no_links(tmp_path, name):
    check_folder(tmp_path)
    (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link"):
        check_folder(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir() if name == ".lock" else (tmp_path / name).write_text("")
    with pytest.raises(UserError, match="in the way"):
        check_folder(tmp_path)


def test_text_is_made_harmless():
    assert one_line("é 字 a\x1b[2J\n\u202e\udcff") == r"é 字 a\x1b[2J\n\u202e\udcff"
    assert [formula_free(x) for x in ("=1+1", " @x", "-1.5", "+2", "-x", "a=b", 3)] == [
        "'=1+1",
        "' @x",
        "-1.5",
        "+2",
        "'-x",
        "a=b",
        "3",
    ]
    assert html("<script>&\n") == r"&lt;script&gt;&amp;\n"
    rows = ["a"], [["=cmd|'/c calc'!A1\x1b\n<b>|"]]
    assert "\x1b" not in markdown(*rows) and "<b>" not in markdown(*rows)
    assert markdown(*rows).count("\n") == 2 and r"\|" in markdown(*rows)
    assert comma_separated(*rows).splitlines()[1].startswith("'=cmd")
    assert "\x1b" not in latex(*rows, caption="x\x1b")


def test_memory_is_compared_before_it_is_taken():
    assert 0 < free_bytes() < 2**50
    check_memory(1, "one byte", "nothing")
    with pytest.raises(
        UserError, match="a cat needs 100 bytes of memory, and 99 bytes are free; go"
    ):
        check_memory(100, "a cat", "go", have=99)
    assert [size(n) for n in (0, 999, 1000, 123_456_789, 10**20)] == [
        "0 bytes",
        "999 bytes",
        "1 kB",
        "123 MB",
        "1e+08 TB",
    ]


@pytest.mark.parametrize(
    "mode, legal", [(0o700, True), (0o755, True), (0o775, False), (0o777, False)]
)
def test_caches_that_others_may_write_are_refused(tmp_path, mode, legal):
    tmp_path.chmod(mode)
    if legal:
        return check_private(tmp_path)
    with pytest.raises(UserError, match="chmod go-w"):
        check_private(tmp_path)
    tmp_path.chmod(0o700)


def test_a_cache_of_another_user_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(UserError, match="another user"):
        check_private(tmp_path)


def test_places_on_this_machine(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert str(local_path("~/runs", "workdir")) == "/home/me/runs"
    for text in ("gs://bucket/x", "s3://x", "a\0b", "~nobody-at-all/x", "a\udcffb"):
        with pytest.raises(UserError, match="--workdir"):
            local_path(text, "workdir")


def test_paths_with_commas_that_exist_are_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "a,b", "c,d,e"):
        (tmp_path / name).mkdir()
    assert split_paths("a,b,c,d,e,x,y,a") == ["a,b", "c,d,e", "x", "y", "a"]
    assert split_paths("x") == ["x"] and split_paths("") == [""]


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such limit")
def test_few_addresses_are_refused():
    """In a process of its own, because the limit can't be taken back."""
    check_addresses()
    code = """
import resource, psutil
from experiments.files import check_addresses
from experiments.files.limits import free_addresses
before = free_addresses()
have = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (have + 2 * 10**9, have + 2 * 10**9))
print(before, 1.9e9 < free_addresses() <= 2e9)
check_addresses()
resource.setrlimit(resource.RLIMIT_AS, (have + 10**8, have + 10**8))
check_addresses()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["inf", "True"]
    assert re.search(r"XLA needs 1.2 GB of addresses, .*ulimit -v.* leaves", done.stderr)


def test_files_that_were_read_count_as_free(tmp_path, monkeypatch):
    numbers = {"limit": "1000\n", "used": "900\n"}
    numbers["memory.stat"] = "total_active_file 100\ntotal_inactive_file 250\nactive_file 9\n"
    for name, text in numbers.items():
        (tmp_path / name).write_text(text)
    group = (str(tmp_path), "limit", "used", "total_")
    monkeypatch.setattr(limits, "GROUPS", (group,))
    assert free_bytes() == 450
    for text in ("anon 5\n", "unreadable\n"):
        (tmp_path / "memory.stat").write_text(text)
        assert free_bytes() == 100
    (tmp_path / "memory.stat").unlink()
    assert free_bytes() == 100, "the limit holds without statistics"
    (tmp_path / "used").write_text("1200\n")
    assert free_bytes() == 0
    (tmp_path / "limit").write_text("max\n")
    assert free_bytes() > 10**6


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077])
def test_caches_are_private_with_any_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        for _ in range(2):
            make_private(tmp_path / "a" / "cache", "xla")
    finally:
        os.umask(before)
    for folder in (tmp_path / "a" / "cache", tmp_path / "a" / "cache" / "xla"):
        check_private(folder)
