"""What ``--routing_implementation=auto`` is on this device: tried before the first step, and kept.

The verdicts are JSON files in the cache folder, one for each device kind, JAX, source of the
kernels and shapes. While a trial runs its file says so: a process that a kernel brings down leaves
that behind, and the next one streams.
"""

import hashlib
import json
import time
from pathlib import Path

import jax

from capsjax.routing import PassKernels
from experiments.files import BadFile, read_json, write_json
from experiments.tasks.base import Setup
from experiments.training import agreement, pieces, processes
from experiments.training.devices import cache_folder
from kernels import api, approval, trial
from kernels.approval import Shapes
from kernels.trial import Verdict

SECONDS = 10.0  # that all trials of a program may take
STREAMS_ELSEWHERE = "another process of the run streams"
UNFINISHED = "an earlier trial of pallas did not come to its end"
_VERDICTS = ("pallas", "stream")


def settle(setup: Setup, runs: int = 1) -> None:
    """Approves the kernels of a training step for which that is right, and says what was found.

    Nothing is done unless ``--routing_implementation=auto`` could mean kernels on these devices.
    Other shapes than those of training, such as those of the last batch of an evaluation, stream.

    Args:
      setup: of the run.
      runs: the number of runs that are trained by one program.
    """
    chosen = getattr(setup.model_config, "routing_implementation", None)
    if setup.config.routing_implementation != "auto" or not isinstance(chosen, PassKernels):
        return
    device, started = processes.own(setup.devices)[0], time.monotonic()
    routing = setup.model_config.make_routing()
    options = {
        "iterations": routing.passes,
        "gradient": setup.config.routing_gradient,
        "mapped": runs > 1 or getattr(setup.config, "ensemble", 1) > 1,
    }
    for shapes in sorted(shapes_of_step(setup), key=repr):
        facts = trial.circumstances(device) | _facts(shapes) | options
        path = _path(setup.config.cache_dir, facts)
        verdict = read(path, facts)
        if verdict is None:
            left = SECONDS - (time.monotonic() - started)
            verdict = _try(shapes, options, left, path, facts)
        kernels = verdict.implementation == "pallas"
        if kernels != agreement.all_agree(kernels):
            verdict = Verdict("stream", STREAMS_ELSEWHERE)
        approval.approve(shapes, verdict.implementation == "pallas")
        p = shapes.problem
        processes.say(
            f"routing of {p.I} to {p.J} capsules, batches of {p.B}: {verdict.implementation} "
            f"({verdict.reason})"
        )


def shapes_of_step(setup: Setup) -> set[Shapes]:
    """Returns the shapes for which ``auto`` asks while a training step is traced."""
    divided = 1 if setup.config.parallel == "jit" else len(setup.devices)
    size = setup.config.batch_size // divided // pieces.number(setup.config)

    def step(key, source):
        keys = jax.random.split(key, size)
        rows = jax.numpy.arange(size)
        images, labels = jax.vmap(setup.pipeline.example, (0, None, 0))(keys, source, rows)
        mode = {"train": True} if setup.model.has_state else {}
        return setup.loss(setup.model.init(key), images, labels, key, **mode)

    with approval.asked_for() as asked:
        jax.eval_shape(step, jax.random.key(0), setup.pipeline.source)
    return asked


def _try(shapes, options, seconds, path, facts) -> Verdict:
    """Tries the kernels and keeps the verdict."""
    _keep(path, facts, Verdict("stream", UNFINISHED))
    try:
        verdict = trial.decide(
            shapes, api.pass_kernels(shapes.platform), **options, seconds=seconds
        )
    except KeyboardInterrupt:  # says nothing of the kernels
        if path:
            path.unlink(missing_ok=True)
        raise
    _keep(path, facts, verdict)
    return verdict


def _facts(shapes: Shapes) -> dict:
    return {"platform": shapes.platform, "dtype": shapes.dtype, **vars(shapes.problem)}


def _path(cache_dir: str, facts: dict) -> Path | None:
    """Returns the file of a verdict; None if none is kept."""
    if cache_dir == "none":
        return None
    code = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    return cache_folder(cache_dir) / "verdicts" / f"{code}.json"


def _keep(path: Path | None, facts: dict, verdict: Verdict) -> None:
    """Writes a verdict; a folder that cannot be written costs the next program a trial."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, facts | verdict._asdict() | {"time": time.time()})
    except OSError:
        pass


def read(path: Path | None, facts: dict) -> Verdict | None:
    """Returns the verdict in a file, or None if there is none that can be relied on.

    Args:
      path: of the file, which another version or anybody may have written.
      facts: what the verdict depends on; the file must say the same.
    """
    try:
        stored = read_json(path) if path else {}
    except BadFile:
        return None
    if any(stored.get(k) != v for k, v in facts.items()):
        return None
    implementation, reason = stored.get("implementation"), stored.get("reason")
    when = stored.get("time")
    if implementation not in _VERDICTS or not isinstance(reason, str) or "\n" in reason:
        return None
    if not isinstance(when, int | float):
        return None
    if reason == UNFINISHED:
        if 0 <= time.time() - when < 2 * SECONDS:  # by another process, at this moment
            return None
        reason += f"; to try again, delete {path}"
    return Verdict(implementation, reason)
