"""Commands in processes that are copies of one which has imported everything, to save time."""

import contextlib
import hashlib
import os
import re
import resource
import runpy
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import experiments

SECONDS = 120  # after which a command counts as hanging
# Quick runs that save twice.
FLAGS = (
    "--dataset=digits",
    "--preset=tiny",
    "--accelerator=cpu",
    "--train_examples=160",
    "--batch_size=16",
    "--epochs=2",
    "--log_every=4",
    "--reconstruction=false",
)


class Ended(NamedTuple):
    """How a command ended."""

    status: int  # negative: by a signal; 124: it was hanging
    out: str
    err: str


def preload() -> None:
    """Imports what commands need, without opening a device."""
    import matplotlib.figure  # noqa: F401
    import orbax.checkpoint  # noqa: F401
    import tensorboardX  # noqa: F401

    import experiments.cifar10  # noqa: F401
    import experiments.equivariance  # noqa: F401
    import experiments.figures  # noqa: F401
    import experiments.mnist  # noqa: F401
    import experiments.predict  # noqa: F401
    import experiments.sweep  # noqa: F401


def start(
    folder: Path,
    module: str,
    *arguments: str,
    most_bytes: int = 0,
    most_files: int = 0,
    more_memory: int = 0,
    ordinary: bool = False,
) -> int:
    """Starts ``python -m experiments.MODULE`` and returns the number of its process.

    Args:
      folder: where its output goes, to out.txt and err.txt.
      module: of experiments. arguments: its flags.
      most_bytes: of a file that it may write, as a disk that is full; 0 for any.
      most_files: open at once; 0 for any.
      more_memory: bytes that it may take beyond those of its copy; 0 for any.
      ordinary: permissions of files hold for it, even if the user is root.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a fork beside threads: no device is open
        child = os.fork()
    if child:
        return child
    status = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        experiments.end_imports_at_once()  # as the import of experiments does
        for descriptor, name in ((1, "out.txt"), (2, "err.txt")):
            file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, descriptor)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1) for n in (1, 2))
        if most_bytes:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
        if most_files:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
        if more_memory:
            # Addresses, most of which an allocator reserves only.
            most = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (most + more_memory, most + more_memory))
        if ordinary and os.getuid() == 0:
            _drop_privileges()
        sys.argv = [f"experiments/{module}.py", *arguments]
        runpy.run_module(f"experiments.{module}", run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _drop_privileges() -> None:
    """Gives up the capabilities of root, for which permissions do not hold (capset of Linux)."""
    import ctypes

    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    if ctypes.CDLL(None, use_errno=True).capset(header, (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "capset")


def wait(folder: Path, child: int, seconds: float = SECONDS) -> Ended:
    """Waits for a command of :func:`start`, and ends it if it takes too long."""
    end = time.monotonic() + seconds
    while not (found := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return Ended(124, "", "it hangs")
        time.sleep(0.005)
    status = os.waitstatus_to_exitcode(found[1])
    texts = [(folder / n).read_text("utf-8", "replace") for n in ("out.txt", "err.txt")]
    return Ended(status, *texts)


def run(folder: Path, module: str, *arguments: str, **options) -> Ended:
    """Runs a command to its end."""
    return wait(folder, start(folder, module, *arguments, **options))


def train(folder: Path, workdir: Path, cache: Path, *more: str, **options) -> Ended:
    """Trains, or continues, the run of :data:`FLAGS`."""
    return run(
        folder, "mnist", *FLAGS, f"--workdir={workdir}", f"--cache_dir={cache}", *more, **options
    )


def result(workdir: Path) -> str:
    """Returns a checksum of all that a run leaves but for times: rows, summary, weights.

    It is computed in a process of its own, because TensorStore's threads do not survive a fork.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writing, _result(workdir).encode())
        except BaseException as error:
            os.write(writing, repr(error).encode()[:1000])
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        found = pipe.read().decode()
    os.waitpid(child, 0)
    return found


def _result(workdir):
    from experiments.files import read_json
    from experiments.training.metrics import read_rows

    times = ("seconds", "images_per_second", "wall_seconds", "training_seconds", "peak_memory_mb")
    times += ("commit",)  # someone may be working on the code
    rows = [
        {k: v for k, v in r.items() if k not in times} for r in read_rows(workdir / "metrics.jsonl")
    ]
    summary = {k: v for k, v in read_json(workdir / "summary.json").items() if k not in times}
    text = repr((rows, sorted(summary.items(), key=str), weights(workdir)))
    return hashlib.sha256(text.encode()).hexdigest()


def weights(workdir: Path) -> str:
    """Returns a checksum of the arrays of the newest checkpoint, read without a device."""
    import numpy as np
    import tensorstore

    names = [path.name for path in (workdir / "checkpoints").iterdir()]
    steps = [int(name) for name in names if re.fullmatch("[0-9]+", name)]
    place = workdir / "checkpoints" / str(max(steps)) / "default"
    base = {"driver": "ocdbt", "base": f"file://{place}"}
    digest = hashlib.sha256()
    keys = sorted(tensorstore.KvStore.open(base).result().list().result())
    for key in keys:
        if key.endswith(b"/.zarray"):
            name = key.decode().removesuffix(".zarray")
            array = tensorstore.open({"driver": "zarr", "kvstore": base | {"path": name}}).result()
            digest.update(name.encode() + np.asarray(array.read().result()).tobytes())
    return digest.hexdigest()


def clean(ended: Ended) -> str:
    """Returns what is wrong with the end of a command that should have been refused, or nothing."""
    lines = [line for line in ended.err.splitlines() if line.strip()]
    if ended.status != 2:
        return f"exit status {ended.status}: {' '.join(lines[-1:])[:100]}"
    if "Traceback" in ended.err or not lines or not lines[-1].startswith("error:"):
        return f"no single line: {' '.join(lines[-1:])[:100]}"
    if re.search(r"[\x00-\x08\x0b-\x1f\x7f]", lines[-1]):
        return "control characters"
    return ""
