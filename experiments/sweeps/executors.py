"""Executors, which train the runs of a sweep in processes of this machine or of a Ray cluster."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from experiments.config import UserError
from experiments.files import BadFile, one_line, read_json, read_text, write_text
from experiments.files.forms import SUMMARY, is_count, is_duration
from experiments.sweeps import ledger
from experiments.sweeps.plan import PlannedRun

ROOT = Path(__file__).resolve().parents[2]
EXECUTORS = ("local", "ray")
STOPPED = (-signal.SIGINT, 128 + signal.SIGINT, 128 + signal.SIGTERM, 129)  # 129: a hangup


def task(program: str, runs: list[PlannedRun]) -> dict:
    """Returns what :func:`perform` needs to know of a group of runs, as plain data.

    Paths in flags are relative to the folder in which the user has started the sweep.
    """
    rows = [{"key": r.key, "arguments": r.arguments, "workdir": str(r.workdir)} for r in runs]
    return {"program": program, "runs": rows, "folder": os.getcwd()}


def perform(task: dict, started: Callable = lambda child: None) -> list[dict]:
    """Trains a group of runs in a process of its own, and returns entries for the ledger.

    A run that has a summary is not trained again. The process writes its messages to log.txt in the
    folder of the first run, and ends when this process ends.

    Args:
      task: see :func:`task`.
      started: is called with the process.

    Returns:
      The entries. Runs that did not fit into the memory of the process have none, nor have the runs
      of a group whose process failed, which should be tried alone.

    Raises:
      KeyboardInterrupt: the process was interrupted, and has saved its work.
    """
    todo = []
    for run in task["runs"]:
        workdir = Path(run["workdir"])
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "error.txt").unlink(missing_ok=True)
        if _summary(workdir) is None:  # it is missing, or damaged and written again
            todo.append(run)
    log, status = Path((todo or task["runs"])[0]["workdir"]) / "log.txt", 0
    if todo:
        job = task | {"runs": [run["arguments"] for run in todo]}
        status = _child(job, log, started)
    if status in STOPPED:
        raise KeyboardInterrupt
    # A summary that can't be used would be asked for again and again. Without any summary the run
    # was stopped by the clock.
    unusable = os.path.lexists(log.parent / "summary.json") and todo and _entry(todo[0]) is None
    if len(todo) == 1 and (status or unusable):
        text = log.read_text("utf-8", errors="replace") if log.exists() else ""
        lines = text.splitlines() or ["no message"]
        write_text(log.parent / "error.txt", f"{lines[-1]} (exit status {status})\n")
    return [entry for run in task["runs"] if (entry := _entry(run))]


def _child(job: dict, log: Path, started: Callable) -> int:
    log.unlink(missing_ok=True)  # a link is not followed
    with open(log, "x", encoding="utf-8") as messages:
        child = subprocess.Popen(
            # -P: modules are not taken from the folder of the user.
            [sys.executable, "-P", "-m", "experiments.sweeps.worker"],
            cwd=job["folder"],
            env=os.environ | _module_path(),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=messages,
            text=True,
            start_new_session=True,  # Ctrl-C reaches it once, through :func:`local`
        )
        started(child)
        with child:
            try:
                child.stdin.write(json.dumps(job) + "\n")
                child.stdin.flush()
            except BrokenPipeError:  # its messages tell the reason
                pass
            return child.wait()


def _module_path() -> dict[str, str]:
    """The environment variable by which a process finds this package wherever it is started."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}


def _interrupt(child: subprocess.Popen) -> None:
    if os.name == "posix":
        child.send_signal(signal.SIGINT)
    else:  # Windows has no such signal for one process; runs survive being ended at any moment
        child.terminate()


@contextlib.contextmanager
def _signals_as_interrupts() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP do once what Ctrl-C does, so that running processes save their work.

    A hangup is ignored where ``nohup`` has turned it off.
    """
    before = {}

    def interrupt(number, frame):
        signal.signal(number, before[number])
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        numbers = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
        before = {n: signal.getsignal(n) for n in numbers}
        before = {n: handler for n, handler in before.items() if handler != signal.SIG_IGN}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _entry(run: dict) -> dict | None:
    workdir = Path(run["workdir"])
    if (summary := _summary(workdir)) is not None:
        return ledger.success(run["key"], summary, summary["together"])
    if (workdir / "error.txt").exists():
        return ledger.failure(run["key"], one_line(read_text(workdir / "error.txt").strip()))
    return None


def _summary(workdir: Path) -> dict | None:
    """The summary of a finished run, None where it is missing or damaged."""
    form = SUMMARY | {"wall_seconds": is_duration, "together": is_count}
    try:
        return read_json(workdir / "summary.json", form)
    except BadFile:
        return None


def local(tasks: list[dict], jobs: int) -> Iterator[list[dict]]:
    """Yields what :func:`perform` returns for each task, in the order in which they end.

    When this process is interrupted, or told to end by SIGTERM or SIGHUP, running processes are
    interrupted once and waited for.

    Args:
      tasks: see :func:`task`.
      jobs: number of processes at once.
    """
    live: list[subprocess.Popen] = []
    with _signals_as_interrupts(), ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(perform, task, live.append) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            print("stopping; the same command continues", file=sys.stderr)
            for future in futures:
                future.cancel()
            for child in live:
                if child.poll() is None:
                    _interrupt(child)
            raise


def on_ray(tasks: list[dict], jobs: int) -> Iterator[list[dict]]:
    """Does what :func:`local` does on the Ray cluster at RAY_ADDRESS, or on ``jobs`` workers here.

    Every machine needs this repository and the folder of the runs at the same paths. A task uses
    one GPU if the cluster has any.

    Raises:
      UserError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "--executor=ray: Ray is missing; pip install -r requirements-ray.txt"
        ) from error
    if not ray.is_initialized():
        here = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": jobs}
        environment = {"env_vars": _module_path()}
        ray.init(log_to_driver=False, runtime_env=environment, include_dashboard=False, **here)
    needs = {"num_gpus": 1} if ray.cluster_resources().get("GPU") else {"num_cpus": 1}
    remote = ray.remote(max_retries=0, **needs)(perform)
    waiting = [remote.remote(task) for task in tasks]
    while waiting:
        (done,), waiting = ray.wait(waiting)
        yield ray.get(done)
