"""Damage to the folder of a run: the same command gives the same result, or refuses in one line."""

import os
import shutil
import time
from functools import partial
from pathlib import Path

import processes

KINDS = (
    "half",
    "empty",
    "zeros",
    "flip10",
    "flip50",
    "flip90",
    "missing",
    "folder",
    "fifo",
    "binary",
)
TEXTS = ("list", "null", "number", "deep", "bom", "twice", "unknown", "wrong type", "dangling link")
FILES = ("config.json", "network.json", "summary.json", "metrics.jsonl")
# In the newest checkpoint; the largest file of each pattern.
PARTS = (
    "default/ocdbt.process_0/d/*",
    "default/d/*",
    "default/manifest.ocdbt",
    "default/_METADATA",
)
PARTS += ("default/array_metadatas/*", "checksums.json", "metrics.jsonl", "config.json")
PARTS += ("_CHECKPOINT_METADATA",)
FULL = (1, 300, 1000, 5000, 20_000, 60_000, 100_000, 150_000, 200_000)  # bytes of the largest file


def damage(path: Path, kind: str) -> None:
    """Damages a file."""
    data = path.read_bytes()
    path.unlink()
    if kind.startswith("flip"):
        place = int(int(kind[4:]) / 100 * (len(data) - 1)) if data else 0
        data = data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]
    new = {
        "half": data[: len(data) // 2],
        "empty": b"",
        "zeros": bytes(len(data)),
        "binary": os.urandom(99),
        "list": b"[1, 2]",
        "null": b"null",
        "number": b"-1e999",
        "deep": b"[" * 200_000,
        "bom": b"\xef\xbb\xbf" + data,
        "twice": data + data,
        "unknown": data.replace(b"{", b'{"flagfile": "x", ', 1),
        "wrong type": data.replace(b": ", b": [[", 1),
    }
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "dangling link":
        path.symlink_to("/nowhere/at all")
    elif kind != "missing":
        path.write_bytes(new.get(kind, data))


def cases(scratch: Path):
    """Yields names, and functions that return what is wrong or nothing."""
    cache, log, whole, half = (scratch / n for n in ("cache", "log", "whole", "half"))
    log.mkdir()
    assert not processes.train(log, half, cache, "--epochs=1").status
    for left in ("summary.json", "figures"):
        shutil.rmtree(half / left) if (half / left).is_dir() else (half / left).unlink()
    ended = processes.train(log, whole, cache)
    assert not ended.status, ended.err
    want = processes.result(whole)
    check = partial(_check, scratch / "run", cache, log, want)
    for start in (whole, half):
        for name in FILES if start == whole else ("metrics.jsonl", "config.json"):
            for kind in KINDS + TEXTS:
                change = partial(_damage_in, name, kind)
                yield f"{start.name}, {name}: {kind}", partial(check, start, change)
        for pattern in PARTS:
            for kind in KINDS[:7]:
                change = partial(_damage_part, pattern, kind)
                yield f"{start.name}, {pattern}: {kind}", partial(check, start, change)
    for name in ("checkpoints", "figures", "tensorboard"):
        for kind in ("file", "link"):
            yield f"{name} is a {kind}", partial(check, whole, partial(_replace, name, kind))
    for size in FULL:
        yield f"disk is full after {size} bytes", partial(_full, check, half, size)
    for count in (12, 20, 32, 48):
        yield f"{count} files open", partial(check, half, lambda workdir: None, most_files=count)
    yield "two at once", partial(_two_at_once, scratch / "two", cache, log, want)
    yield "no HOME, no cache", partial(_without_home, check, half)
    yield "reader during training", partial(_reader, scratch / "read", cache, log, want)
    yield "clock goes back", partial(check, half, _older)


def _damage_in(name, kind, workdir):
    damage(workdir / name, kind)


def _newest(workdir):
    steps = [int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()]
    return workdir / "checkpoints" / str(max(steps))


def _damage_part(pattern, kind, workdir):
    damage(max(_newest(workdir).glob(pattern), key=lambda path: path.stat().st_size), kind)


def _replace(name, kind, workdir):
    path = workdir / name
    path.rename(workdir.parent / f"moved-{time.monotonic_ns()}")
    path.write_text("") if kind == "file" else path.symlink_to(workdir.parent)


def _older(workdir):
    for path in workdir.rglob("*"):
        os.utime(path, (4e9, 4e9))  # everything there is of the future


def _check(workdir, cache, log, want, start, change, **options):
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(start, workdir)
    change(workdir)
    ended = processes.train(log, workdir, cache, **options)
    if ended.status:
        return processes.clean(ended)
    if "Traceback" in ended.err:
        return f"a traceback: {ended.err[-200:]}"
    return "" if processes.result(workdir) == want else f"another result, said: {ended.err[-300:]}"


def _full(check, start, size):
    """After the disk is full there is one line, and with space the same result."""
    workdir, cache, log, want = check.args
    problem = check(start, lambda workdir: None, most_bytes=size)
    if problem:
        return problem
    ended = processes.train(log, workdir, cache)
    same = not ended.status and processes.result(workdir) == want
    return "" if same else f"not continued: {ended.err[-200:]}"


def _two_at_once(workdir, cache, log, want):
    """One trains, the other says so."""
    other = log / "other"
    other.mkdir()
    flags = (*processes.FLAGS, f"--workdir={workdir}", f"--cache_dir={cache}")
    children = [(place, processes.start(place, "mnist", *flags)) for place in (log, other)]
    ended = [processes.wait(*child) for child in children]
    problems = [processes.clean(one) for one in ended if one.status]
    if len(problems) == 2 or any(problems):
        return str(problems)
    return "" if processes.result(workdir) == want else "another result"


def _without_home(check, start):
    before = os.environ.pop("HOME", None)
    try:
        return check(start, lambda workdir: None)
    finally:
        if before is not None:
            os.environ["HOME"] = before


def _reader(workdir, cache, log, want):
    """Figures are drawn again and again while a run trains, which does not notice."""
    other = log / "reader"
    other.mkdir()
    flags = (*processes.FLAGS, f"--workdir={workdir}", f"--cache_dir={cache}")
    child = processes.start(log, "mnist", *flags)
    arguments = (f"--run={workdir}", f"--cache_dir={cache}", f"--output={other}")
    problems = []
    while not os.waitpid(child, os.WNOHANG)[0]:
        ended = processes.run(other, "figures", "--accelerator=cpu", *arguments)
        problems += [processes.clean(ended)] if ended.status else []
    if any(problems):
        return str(list(filter(None, problems)))
    return "" if processes.result(workdir) == want else "another result"
