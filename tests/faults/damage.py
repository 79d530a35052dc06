"""Damage to the folder of a run: the same command gives the same result, or refuses in one line."""

import os
import random
import shutil
import time
from functools import partial
from pathlib import Path

import processes

from experiments.files import check_programs

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
# Bytes of the largest file. What is printed goes to files too, and has to fit.
FULL = (1000, 5000, 20_000, 60_000, 100_000, 150_000, 200_000)

EXTRA = ("notes.txt", "checkpoints/notes.txt", "checkpoints/99", "checkpoints/99/default")
EXTRA += ("checkpoints/007", "checkpoints/-5", "figures/old.png", "tensorboard/a/b")
EXTRA += ("checkpoints/10/default/d/more", "checkpoints/1" + "0" * 40, "checkpoints/²")
PERMISSIONS = ((".", 0o555), (".", 0), ("config.json", 0), ("metrics.jsonl", 0o444))
PERMISSIONS += (("metrics.jsonl", 0), ("checkpoints", 0o555), ("checkpoints", 0), (".lock", 0))
PERMISSIONS += (("checkpoints/10", 0o555), ("checkpoints/10/default/d", 0), ("network.json", 0))
MEMORY = (1, 64, 256, 512, 1024, 4096)


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
            for kind in KINDS[:7] if start == whole else ("half", "flip50", "missing"):
                change = partial(_damage_part, pattern, kind)
                yield f"{start.name}, {pattern}: {kind}", partial(check, start, change)
    for name in ("checkpoints", "figures", "tensorboard"):
        for kind in ("file", "link"):
            yield f"{name} is a {kind}", partial(check, whole, partial(_replace, name, kind))
    for number in range(20):
        yield f"flip anywhere {number}", partial(check, half, partial(_flip_anywhere, number))
    for name in EXTRA:
        yield f"additional {name}", partial(check, half, partial(_add, name))
    for name, mode in PERMISSIONS:
        change = partial(_chmod, name, mode)
        yield f"{name} has mode {mode:o}", partial(check, half, change, ordinary=True)
    for kind in ("exchanged", "flipped", "half", "empty", "read-only"):
        yield f"compiled programs: {kind}", partial(_programs, kind, scratch, log, half, want)
    for megabytes in MEMORY:
        limit = {"more_memory": megabytes * 2**20}
        yield f"{megabytes} MB more", partial(check, half, lambda workdir: None, **limit)
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


def _flip_anywhere(number, workdir):
    chance = random.Random(number)
    files = sorted(p for p in workdir.rglob("*") if p.is_file() and p.stat().st_size)
    path = chance.choice(files)
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def _add(name, workdir):
    path = workdir / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"more") if "." in name or name.endswith("more") else path.mkdir()


def _chmod(name, mode, workdir):
    (workdir / name).chmod(mode)


def _programs(kind, scratch, log, start, want):
    """What is wrong with compiled programs is compiled again."""
    cache, workdir = scratch / "damaged programs", scratch / "run"
    if cache.exists():
        _chmod_all(cache, 0o700)
        shutil.rmtree(cache)
    shutil.copytree(scratch / "cache", cache)
    entries = sorted((cache / "xla").glob("*-cache"))
    for path in entries:
        os.utime(path, (1e9, 1e9))  # they are not being written any more
    check_programs(cache / "xla")
    contents = [bytearray(path.read_bytes()) for path in entries]
    for data in contents:
        data[len(data) // 2] ^= 4 * (kind == "flipped")
    contents = contents[::-1] if kind == "exchanged" else contents
    for path, data in zip(entries, contents, strict=True):
        path.write_bytes(data[: {"half": len(data) // 2, "empty": 0}.get(kind)])
    if kind == "read-only":
        _chmod_all(cache, 0o500)
    problem = _check(workdir, cache, log, want, start, lambda workdir: None, ordinary=True)
    said = "compiled again" in (log / "err.txt").read_text() or kind == "read-only"
    return problem or ("" if said else "nothing is said")


def _chmod_all(folder, mode):
    folder.chmod(mode)
    for place, folders, _ in os.walk(folder):  # which lists a folder before it enters it
        for name in folders:
            Path(place, name).chmod(mode)


def _older(workdir):
    for path in workdir.rglob("*"):
        os.utime(path, (4e9, 4e9))  # everything there is of the future


def _check(workdir, cache, log, want, start, change, **options):
    if workdir.exists():
        _chmod_all(workdir, 0o700)
        shutil.rmtree(workdir)
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
