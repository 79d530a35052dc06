"""How commands end: kernels.cli.run in a process of its own."""

import logging
import os
import subprocess
import sys

import pytest
from absl import flags
from helpers import ROOT

from kernels import cli

TOO_LARGE = "jax.block_until_ready(jax.jit(lambda: jnp.zeros((2**20, 2**20, 2**20), 'int8'))())"


def end(body, *arguments, **options):
    """Runs a command whose main is ``body``."""
    code = f"import sys, jax, jax.numpy as jnp\nfrom kernels import cli\ndef main():\n {body}\n"
    return subprocess.run(
        [sys.executable, "-c", code + "cli.run(main)", *arguments],
        cwd=ROOT,
        text=True,
        timeout=120,
        stderr=subprocess.PIPE,
        **options,
    )


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("print(1)", 0, ""),
        ("raise ValueError('two\\n lines')", 2, "error: two lines\n"),
        ("raise KeyboardInterrupt", 130, "interrupted\n"),
        (TOO_LARGE, 2, "error: too little memory; smaller images, --preset or batches need less: "),
        ("raise KeyError('a defect')", 1, "Traceback "),
        ("raise jax.errors.JaxRuntimeError('INTERNAL: a defect')", 1, "Traceback "),
    ],
)
def test_how_it_ends(body, status, said):
    done = end(body, stdout=subprocess.DEVNULL)
    assert done.returncode == status and done.stderr.lstrip().startswith(said), done.stderr
    assert said or not done.stderr


def test_wrong_flags():
    done = end("pass", "--nope=1", stdout=subprocess.DEVNULL)
    assert done.returncode == 2 and "'nope'" in done.stderr
    done = end("pass", "word", stdout=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (
        2,
        "error: unexpected argument 'word'; flags look like --name=value\n",
    )


def test_a_closed_pipe_ends_it_silently():
    read, written = os.pipe()
    os.close(read)
    with open(written, "w") as closed_pipe:
        done = end("print('x' * 10**6)", stdout=closed_pipe)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("place", ["/dev/zero", "fifo", "names fifo", "a folder", "nowhere"])
def test_flag_files_that_never_end_are_refused(place, tmp_path):
    path = tmp_path / "flags"
    if place == "fifo":
        os.mkfifo(path)
    elif place == "names fifo":
        os.mkfifo(tmp_path / "other")
        path.write_text(f"--verbosity=0\n--flagfile={tmp_path / 'other'}\n")
    elif place == "a folder":
        path.mkdir()
    name = place if place[0] == "/" else str(path)
    for words in ([f"--flagfile={name}"], ["--verbosity=0", "-flagfile", name]):
        with pytest.raises(flags.Error, match="is no file of at most 1,048,576 bytes"):
            cli._check_flag_files(words, set())
    if place == "/dev/zero":
        done = end("pass", f"--flagfile={name}", stdout=subprocess.DEVNULL)
        assert done.returncode == 2 and done.stderr.startswith("error: --flagfile=/dev/zero is no")


def test_flag_files_are_read(tmp_path):
    (tmp_path / "more").write_text("--verbosity=1\n")
    (tmp_path / "flags").write_text(f"# a comment\n--flagfile={tmp_path / 'more'}\n")
    body = "from absl import flags; print(flags.FLAGS.verbosity)"
    done = end(body, f"--flagfile={tmp_path / 'flags'}", stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (0, "1\n")


@pytest.mark.parametrize("place, shown", [("orbax/checkpoint/a.py", False), ("my/run.py", True)])
def test_errors_that_orbax_raises_are_not_logged_too(place, shown):
    record = logging.LogRecord("absl", logging.ERROR, f"/python/{place}", 1, "failed", None, None)
    assert cli._not_of_orbax(record) == shown


@pytest.mark.parametrize(
    "body, shown",
    [
        # As TensorStore does in a thread of its own, after Orbax has closed the loop.
        ("loop = asyncio.new_event_loop(); loop.close(); call = loop.call_soon_threadsafe", False),
        ("call = lambda function: 1 / 0", True),
    ],
)
def test_calls_of_a_closed_event_loop_are_not_reported_too(body, shown):
    raising = "ctypes.CFUNCTYPE(None)(lambda: call(print))()"  # what ctypes can raise to nobody
    done = end(f"import asyncio, ctypes; {body}; {raising}", stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (0, "")
    assert bool(done.stderr) == shown and ("ZeroDivisionError" in done.stderr) == shown
