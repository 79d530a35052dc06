"""Tries the kernels of routing on the device at hand, against ``stream``.

A kernel that does not compile, is wrong, or does not come back must not cost its user the program:
whatever happens, the answer is a :class:`Verdict`.
"""

import functools
import hashlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import capsjax
from capsjax.routing import PassKernels
from kernels.approval import Shapes
from kernels.bench import error, tolerance
from kernels.blocks import Unsupported

REPETITIONS = 7
SECONDS = 0.5  # after which no further repetition of a measurement begins


class Verdict(NamedTuple):
    """Whether kernels are used for some shapes, and why."""

    implementation: str  # pallas or stream
    reason: str  # one line


def decide(
    shapes: Shapes,
    kernels: PassKernels,
    *,
    iterations: int = 3,
    gradient: str = "full",
    mapped: bool = False,
    seconds: float = 10.0,
) -> Verdict:
    """Compares values and gradients of kernels with those of ``stream``, and times both.

    Args:
      shapes: of the passes.
      kernels: those on trial.
      iterations: of dynamic routing, which is what is computed.
      gradient: see :func:`capsjax.routing.route`.
      mapped: whether the program maps the routing with ``jax.vmap``, over networks or runs. The
        kernels must then be right both alone and mapped over two, and the latter is timed.
      seconds: a trial that takes longer is given up. It is then left behind in a thread, because
        a compiler cannot be interrupted.

    Returns:
      ``pallas`` if that is right and faster, otherwise ``stream``.
    """
    options = {"iterations": iterations, "gradient": gradient, "mapped": mapped}
    answers = queue.SimpleQueue()

    def attempt():
        try:
            answers.put(_compare(shapes, kernels, **options))
        except Unsupported as reason:
            answers.put(Verdict("stream", f"pallas does not take these shapes: {_line(reason)}"))
        except BaseException as failure:  # of any kind: a compiler may raise anything
            kind = type(failure).__name__
            answers.put(Verdict("stream", f"pallas failed, {kind}: {_line(failure)}"))

    threading.Thread(target=attempt, daemon=True).start()
    try:
        return answers.get(timeout=max(seconds, 0.0))
    except queue.Empty:
        return Verdict("stream", f"pallas was not tried to the end within {seconds:.0f} s")


def _compare(shapes, kernels, *, iterations, gradient, mapped) -> Verdict:
    problem, times = shapes.problem, {}
    # The arrays are arguments: a compiler would compute with constants itself.
    arrays = problem.arrays(shapes.dtype)
    pair = problem.arrays(shapes.dtype, seed=1)
    forms = [(lambda f: f, arrays)]
    if mapped:
        both = jax.tree.map(lambda a, b: jnp.stack([a, b]), arrays, pair)
        forms.append((jax.vmap, both))
    precision = jax.config.jax_default_matmul_precision or "default"
    limit = tolerance(shapes.dtype, precision, shapes.platform)
    for wrap, x in forms:
        functions = {
            name: jax.jit(wrap(_function(problem, implementation, iterations, gradient)))
            for name, implementation in (("stream", "stream"), ("pallas", kernels))
        }
        got = {
            name: jax.tree.map(lambda a: np.asarray(a, np.float64), jax.device_get(run(x)))
            for name, run in functions.items()
        }
        for part in ("values", "gradients"):
            off = error(got["pallas"][part], got["stream"][part])
            if not off <= limit:
                how = "are not finite" if np.isnan(off) else f"are off by {off:.1g}"
                return Verdict("stream", f"{part} of pallas {how}")
        times = _times(functions, x)
    faster = min(times, key=times.get)
    return Verdict(faster, ", ".join(f"{name} {1e3 * t:.2f} ms" for name, t in times.items()))


def _function(problem, implementation, iterations, gradient) -> Callable:
    """Returns the function of the arrays that is compared: values, and gradients by all of them."""

    def loss(x):
        options = {"implementation": implementation, "gradient": gradient}
        pose = problem.route(x, iterations, **options).pose
        # The sine gives every element its own weight: the gradient is no multiple of the pose.
        return jnp.sum(jnp.sin(5 * pose)), pose

    def both(x):
        grads, pose = jax.grad(loss, has_aux=True)(x)
        return {"values": pose, "gradients": grads}

    return both


def _times(functions: dict[str, Callable], x) -> dict[str, float]:
    """Returns the median of the seconds of each compiled function, called in turns."""
    taken, start = {name: [] for name in functions}, time.perf_counter()
    for _ in range(REPETITIONS):
        for name, run in functions.items():
            before = time.perf_counter()
            jax.block_until_ready(run(x))
            taken[name].append(time.perf_counter() - before)
        if time.perf_counter() - start > SECONDS:
            break
    return {name: float(np.median(values)) for name, values in taken.items()}


def _line(failure: BaseException) -> str:
    return " ".join(str(failure).split())[:200]


def circumstances(device: jax.Device) -> dict[str, str]:
    """Returns what a verdict depends on besides the shapes: another value asks for a new trial."""
    return {
        "device_kind": device.device_kind,
        "jax": jax.__version__,
        "compiler": device.client.platform_version,
        "precision": str(jax.config.jax_default_matmul_precision or "default"),
        "source": _source(),
    }


@functools.cache
def _source() -> str:
    """Returns a digest of the source of the kernels and of the routing that they are part of."""
    folders: Sequence[Path] = (Path(__file__).parent, Path(capsjax.__file__).parent / "routing")
    digest = hashlib.sha256()
    for path in (path for folder in folders for path in sorted(folder.glob("*.py"))):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
