"""Where runs are computed: processes of this machine, or of a Ray cluster."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from experiments.config import UserError
from experiments.sweeps import ledger
from experiments.sweeps.plan import PlannedRun

ROOT = Path(__file__).resolve().parents[2]
EXECUTORS = ("local", "ray")
STOPPED = (-signal.SIGINT, 128 + signal.SIGINT, 128 + signal.SIGTERM)


def task(program: str, runs: list[PlannedRun]) -> dict:
    """What :func:`perform` needs of a group of runs, as plain data."""
    rows = [{"key": r.key, "arguments": r.arguments, "workdir": str(r.workdir)} for r in runs]
    return {"program": program, "runs": rows}


def perform(task: dict, started: Callable = lambda child: None) -> list[dict]:
    """Train a group of runs in a process of its own; return entries for the ledger.

    A run that has a summary already is done. The process writes what it says to log.txt in the
    folder of the first run, and ends when this one does.

    Args:
      task: see :func:`task`. started: is told of the process.

    Returns:
      Entries; none of runs that the process had no memory for, nor of those of a group whose
      process failed, which should be tried alone.

    Raises:
      KeyboardInterrupt: the process was interrupted, and has saved its work.
    """
    todo = []
    for run in task["runs"]:
        workdir = Path(run["workdir"])
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "error.txt").unlink(missing_ok=True)
        if not (workdir / "summary.json").exists():
            todo.append(run)
    log, status = Path((todo or task["runs"])[0]["workdir"]) / "log.txt", 0
    if todo:
        job = {"program": task["program"], "runs": [run["arguments"] for run in todo]}
        status = _child(job, log, started)
    if status in STOPPED:
        raise KeyboardInterrupt
    if status and len(todo) == 1:
        lines = log.read_text(errors="replace").splitlines() or ["nothing was said"]
        (log.parent / "error.txt").write_text(f"{lines[-1]} (exit status {status})\n")
    return [entry for run in task["runs"] if (entry := _entry(run))]


def _child(job: dict, log: Path, started: Callable) -> int:
    with open(log, "w") as told:
        child = subprocess.Popen(
            [sys.executable, "-m", "experiments.sweeps.worker"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=told,
            text=True,
            start_new_session=True,  # Ctrl-C reaches it once, through :func:`local`
        )
        started(child)
        with child:
            try:
                child.stdin.write(json.dumps(job) + "\n")
                child.stdin.flush()
            except BrokenPipeError:  # it has said why
                pass
            return child.wait()


def _entry(run: dict) -> dict | None:
    workdir = Path(run["workdir"])
    if (workdir / "summary.json").exists():
        summary = json.loads((workdir / "summary.json").read_text())
        return ledger.success(run["key"], summary, summary["together"])
    if (workdir / "error.txt").exists():
        return ledger.failure(run["key"], (workdir / "error.txt").read_text().strip())
    return None


def local(tasks: list[dict], jobs: int) -> Iterator[list[dict]]:
    """What :func:`perform` gives for each task, in the order of their ends.

    When interrupted, running processes are told once, and waited for.
    """
    live: list[subprocess.Popen] = []
    with ThreadPoolExecutor(jobs) as pool:
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
                    child.send_signal(signal.SIGINT)
            raise


def on_ray(tasks: list[dict], jobs: int) -> Iterator[list[dict]]:
    """As :func:`local`, on the cluster that RAY_ADDRESS names, or one of ``jobs`` workers here.

    Every machine needs this repository in the same place, and the folder of the runs. A task
    takes one GPU where the cluster has any.

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
        places = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {"env_vars": {"PYTHONPATH": places}}
        ray.init(log_to_driver=False, runtime_env=environment, include_dashboard=False, **here)
    needs = {"num_gpus": 1} if ray.cluster_resources().get("GPU") else {"num_cpus": 1}
    remote = ray.remote(max_retries=0, **needs)(perform)
    waiting = [remote.remote(task) for task in tasks]
    while waiting:
        (done,), waiting = ray.wait(waiting)
        yield ray.get(done)
