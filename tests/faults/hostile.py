"""Files from somebody else: each is refused or harmless. The numbers are those of SECURITY.md."""

import io
import json
import os
import shutil
import stat
import zipfile
from functools import partial
from pathlib import Path

import inputs
import numpy as np
import processes

BEFORE = "left alone"


def cases(scratch: Path):
    """Yields names, and functions that return what is wrong or nothing."""
    cache, log, run = (scratch / n for n in ("cache", "log", "run"))
    log.mkdir()
    data = scratch / "data.npz"
    np.savez(data, **inputs.arrays(train_images=_images(20), test_images=_images(20)))
    ended = processes.run(
        log,
        "mnist",
        f"--dataset={data}",
        "--preset=tiny",
        "--accelerator=cpu",
        "--steps=2",
        "--batch_size=8",
        f"--workdir={run}",
        f"--cache_dir={cache}",
    )
    assert not ended.status, ended.err
    image = scratch / "image.png"
    image.write_bytes(next((run / "figures").glob("*.png")).read_bytes())
    given = Received(scratch, cache, log, run, image)
    for name, case in CASES.items():
        yield name, partial(case, given)


def _images(count):
    return np.random.default_rng(1).integers(0, 256, (count, 20, 20, 1), np.uint8)


class Received:
    """A run that was received, and what the user does with it."""

    def __init__(self, scratch, cache, log, run, image):
        self.scratch, self.cache, self.log, self.original, self.image = (
            scratch,
            cache,
            log,
            run,
            image,
        )

    def copy(self) -> Path:
        """Returns a fresh copy of the run."""
        folder = self.scratch / "received"
        shutil.rmtree(folder, ignore_errors=True)
        return shutil.copytree(self.original, folder, symlinks=True)

    def victim(self) -> Path:
        """Returns a file of the user that must stay as it is."""
        path = self.scratch / "victim"
        path.write_text(BEFORE)
        return path

    def predict(self, folder, *more):
        """Classifies an image."""
        flags = (f"--run={folder}", "--accelerator=cpu", f"--cache_dir={self.cache}")
        return processes.run(self.log, "predict", *flags, *(more or (str(self.image),)))

    def train(self, folder, *more):
        """Continues a run with the flags of the user."""
        data = self.scratch / "data.npz"
        return processes.run(
            self.log,
            "mnist",
            f"--dataset={data}",
            "--preset=tiny",
            "--accelerator=cpu",
            "--steps=2",
            "--batch_size=8",
            f"--workdir={folder}",
            f"--cache_dir={self.cache}",
            *more,
        )

    def sweep(self, *more):
        """Makes a table."""
        flags = ("--grid=seed=0,1", "--dataset=digits", "--preset=tiny", "--dry_run")
        return processes.run(self.log, "sweep", *flags, *more)


def _config(given, **changes):
    folder = given.copy()
    stored = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(stored))
    return folder


def _fine(ended):
    return (
        ""
        if not ended.status and "Traceback" not in ended.err
        else f"{ended.status} {ended.err[-200:]}"
    )


def own_cache_dir(given):
    """1: a cache of compiled programs inside the run is not used."""
    folder = _config(given, cache_dir=str(given.scratch / "received" / "programs"))
    ended = processes.run(
        given.log, "predict", f"--run={folder}", "--accelerator=cpu", str(given.image)
    )
    return _fine(ended) or ("used" if (folder / "programs").exists() else "")


def unknown_keys(given):
    """2 and 3: keys that are no settings are refused."""
    problems = [
        processes.clean(given.predict(_config(given, **{k: "/dev/zero"})))
        for k in ("cache_dir=x", "flagfile")
    ]
    grid = processes.run(given.log, "sweep", "--grid=flagfile=/dev/zero", "--dataset=digits")
    return "; ".join(filter(None, [*problems, processes.clean(grid)]))


def class_of_a_feature(given):
    """4: a class of another module is refused before TFDS sees it."""
    folder = given.scratch / "tfds" / "mnist" / "3.0.1"
    folder.mkdir(parents=True, exist_ok=True)
    feature = {"pythonClassName": "os.path.Evil", "featuresDict": {"features": {}}}
    (folder / "features.json").write_text(json.dumps(feature))
    (folder / "dataset_info.json").write_text("{}")
    ended = processes.run(
        given.log,
        "mnist",
        "--dataset=mnist",
        f"--data_dir={given.scratch / 'tfds'}",
        f"--cache_dir={given.scratch / 'none'}",
        "--accelerator=cpu",
    )
    return processes.clean(ended) or ("" if "none of TFDS" in ended.err else ended.err[-200:])


def linked_outputs(given):
    """5: outputs that are links are replaced, linked folders are refused."""
    folder, victim = given.copy(), given.victim()
    for name in (
        "predictions.png",
        "predictions.csv",
        "metrics.jsonl",
        "summary.json",
        "config.json",
    ):
        (folder / name).unlink(missing_ok=True)
        if name.startswith("pred"):
            (folder / name).symlink_to(victim)
    shutil.copy(given.original / "config.json", folder)
    images = given.scratch / "images"
    images.mkdir(exist_ok=True)
    shutil.copy(given.image, images)
    ended = given.predict(folder, str(images))
    problem = _fine(ended)
    for name in ("figures", ".lock"):
        other = given.copy()
        shutil.rmtree(other / name) if (other / name).is_dir() else (other / name).unlink(
            missing_ok=True
        )
        (other / name).symlink_to(victim)
        problem = problem or processes.clean(given.train(other))
    return problem or ("" if victim.read_text() == BEFORE else "overwritten")


def linked_metrics(given):
    """6: files and temporary files that are links are replaced or not used."""
    folder, victim = given.copy(), given.victim()
    for name in ("metrics.jsonl", "summary.json", "network.json"):
        (folder / name).unlink()
        (folder / name).symlink_to(victim)
    for number in range(2, 3000):  # the names that temporary files had once
        (folder / f".metrics.jsonl.{os.getpid() + number}").symlink_to(victim)
    return _fine(given.train(folder)) or ("" if victim.read_text() == BEFORE else "overwritten")


def linked_checkpoints(given):
    """7: another run's checkpoints are not deleted."""
    folder = given.copy()
    other = shutil.copytree(given.original, given.scratch / "other", dirs_exist_ok=True)
    shutil.rmtree(folder / "checkpoints")
    (folder / "checkpoints").symlink_to(other / "checkpoints")
    before = sorted(p.name for p in (other / "checkpoints").iterdir())
    problem = processes.clean(given.train(folder))
    return problem or (
        "" if before == sorted(p.name for p in (other / "checkpoints").iterdir()) else "deleted"
    )


def temporary_checkpoint(given):
    """8: a reader leaves a save in progress alone."""
    folder = given.copy()
    busy = folder / "checkpoints" / "9.orbax-checkpoint-tmp-1"
    busy.mkdir()
    problem = _fine(given.predict(folder))
    return problem or ("" if busy.exists() else "deleted")


def remote_cache(given):
    """9: a remote cache in config.json is not asked."""
    return _fine(given.predict(_config(given, cache_dir="/gs/bucket/x", data_dir="/s3/bucket")))


def shared_cache(given):
    """10: a cache that others may write is refused."""
    cache = given.scratch / "shared"
    cache.mkdir(exist_ok=True)
    cache.chmod(0o777)
    ended = given.train(given.copy(), f"--cache_dir={cache}")
    problem = processes.clean(ended)
    if hasattr(os, "chown") and os.getuid() == 0:
        cache.chmod(0o700)
        os.chown(cache, 12345, 12345)
        problem = problem or processes.clean(given.train(given.copy(), f"--cache_dir={cache}"))
    return problem


def other_pixels(given):
    """10: cached arrays with other pixels are refused."""
    cache = given.scratch / "pixels"
    flags = (
        "--dataset=digits",
        "--preset=tiny",
        "--accelerator=cpu",
        "--steps=1",
        f"--cache_dir={cache}",
    )
    for number in range(2):
        ended = processes.run(
            given.log, "mnist", *flags, f"--workdir={given.scratch / f'pixels{number}'}"
        )
        if number == 0:
            path = cache / "datasets" / "digits.npz"
            with np.load(path) as stored:
                arrays = dict(stored)
            arrays["train_images"] = 255 - arrays["train_images"]
            np.savez(path, **arrays)
    return processes.clean(ended)


def file_named_like_a_flag(given):
    """11: a file whose name is a flag is not taken for one."""
    place, before = given.scratch / "names", os.getcwd()
    place.mkdir(exist_ok=True)
    (place / "--flagfile=a.png").write_text("--cache_dir=/nowhere")
    os.chdir(place)
    try:
        return processes.clean(given.predict(given.original, "--flagfile=a.png"))
    finally:
        os.chdir(before)


def zeros(given):
    """12: arrays that unpack to more than there is are refused by their headers."""
    path, header = given.scratch / "bomb.npz", io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 1000, 1000, 1)}
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("train_images", "train_labels", "test_images", "test_labels"):
            archive.writestr(f"{name}.npy", header.getvalue() + bytes(10**6))
    ended = processes.run(given.log, "mnist", f"--dataset={path}", "--accelerator=cpu")
    return processes.clean(ended) or ("" if "memory" in ended.err else ended.err[-200:])


def wrapped_labels(given):
    """13: labels beyond int32 are refused."""
    path = given.scratch / "wrapped.npz"
    labels = inputs.arrays()["train_labels"]
    np.savez(path, **inputs.arrays(train_labels=labels + 2**32))
    return processes.clean(
        processes.run(given.log, "mnist", f"--dataset={path}", "--accelerator=cpu")
    )


def large_network(given):
    """14: a received run of a network beyond memory is refused."""
    return processes.clean(
        given.predict(_config(given, primary_types=2_000_000_000, class_pose=10**9))
    )


ENTRY = {"key": "python -m experiments.mnist", "seconds": 1.0, "together": 1}


def ledgers(given):
    """15: entries that are none are left out and said, or the ledger is refused."""
    wrong = [
        ENTRY | {"summary": {"test_examples": 4e10, "test_errors": 4e10}},
        ENTRY | {"summary": {"test_examples": 40_000_000_000}, "correct": "AAAA"},
        ENTRY | {"key": ["a"], "summary": {}},
        ENTRY | {"summary": "text"},
        ENTRY | {"seconds": "1", "summary": {}},
        ENTRY | {"summary": {"test_error": -1}},
    ]
    lines = [json.dumps(entry) for entry in wrong] + ["[" * 200_000]
    path = given.scratch / "theirs.jsonl"
    for number, line in enumerate(lines):
        path.write_text(line + "\n")
        ended = given.sweep(f"--merge={path}", f"--runs={given.scratch / 'sweep'}")
        if ended.status or "Traceback" in ended.err or "left out" not in ended.err:
            return f"entry {number}: {ended.status} {ended.err[-200:]}"
    return ""


def merged_results(given):
    """16: own results stay, and differences are said."""
    from experiments.sweeps import ledger

    own, theirs = ({"a": ENTRY | {"summary": {"test_error": e}}} for e in (24.0, 0.01))
    before = ledger.merge(own, theirs)
    return "" if before == own else "replaced"


def odd_json(given):
    """17: nesting, wrong shapes, and files that never end."""
    problems = []
    for name, text in (
        ("config.json", "[" * 10**6),
        ("config.json", None),
        ("network.json", "{" * 10**6),
        ("network.json", '{"image_shape": ["a"], "class_names": [], "border": 3}'),
        ("network.json", None),
    ):
        for target in ["/dev/zero", "fifo"] if text is None else [""]:
            folder = given.copy()
            (folder / name).unlink()
            if text is not None:
                (folder / name).write_text(text)
            elif target == "fifo":
                os.mkfifo(folder / name)
            else:
                (folder / name).symlink_to(target)
            problems.append(processes.clean(given.predict(folder)))
    return "; ".join(filter(None, problems))


def escapes(given):
    """18: names with control characters and formulas are escaped."""
    folder = given.copy()
    stored = json.loads((folder / "network.json").read_text())
    stored["class_names"] = [f"=cmd|'/c calc'!A{n}\x1b[2J\n<script>" for n in range(4)]
    (folder / "network.json").write_text(json.dumps(stored))
    images = given.scratch / "odd"
    images.mkdir(exist_ok=True)
    shutil.copy(given.image, images / "a\x1b[31m\n.png")
    ended = given.predict(folder, str(images))
    table = (folder / "predictions.csv").read_text()
    seen = any(c in ended.out + ended.err + table for c in "\x1b\r") or ",=" in table
    return _fine(ended) or ("raw characters" if seen else "")


def pickles(given):
    """A pickle in an array file, or in place of one, is not read."""
    problems = []
    for content in (
        inputs.arrays(train_labels=np.array([{}] * 20, object)),
        inputs.arrays(class_names=np.array([object] * 4, object)),
    ):
        np.savez(given.scratch / "pickle.npz", **content)
        ended = processes.run(
            given.log, "mnist", f"--dataset={given.scratch / 'pickle.npz'}", "--accelerator=cpu"
        )
        problems.append(processes.clean(ended))
    (given.scratch / "pickle.npz").write_bytes(b"\x80\x04cos\nsystem\n.")
    ended = processes.run(
        given.log, "mnist", f"--dataset={given.scratch / 'pickle.npz'}", "--accelerator=cpu"
    )
    return "; ".join(filter(None, [*problems, processes.clean(ended)]))


def private_files(given):
    """What is written may be read by others as far as the user's umask says, and never written."""
    mode = stat.S_IMODE((given.original / "summary.json").stat().st_mode)
    return "" if not mode & 0o022 else oct(mode)


CASES = {
    f"{function.__doc__.split(':')[0]} {function.__name__}": function
    for function in (
        own_cache_dir,
        unknown_keys,
        class_of_a_feature,
        linked_outputs,
        linked_metrics,
        linked_checkpoints,
        temporary_checkpoint,
        remote_cache,
        shared_cache,
        other_pixels,
        file_named_like_a_flag,
        zeros,
        wrapped_labels,
        large_network,
        ledgers,
        merged_results,
        odd_json,
        escapes,
        pickles,
        private_files,
    )
}
