"""Test images turned, sheared and scaled: a further column of studies that ask for it.

Needs :mod:`experiments.affine`. The error is measured once a run, from its last checkpoint, and
is a line of the ledger.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np

from experiments import io, ledger, loop
from experiments.plan import Run
from experiments.studies import Study

HEADING = "affine test error, %"
# Half the width of uniform distributions: degrees, pixels a pixel, and of the scales about one.
RANGES = {"rotation": 20.0, "shear": 0.2, "scale_x": 0.2, "scale_y": 0.2}
SEED = 20171026  # the same images for all runs


def measure(
    study: Study, runs: list[Run], entries: dict[str, dict], book: Path
) -> tuple[dict[str, dict], list[str]]:
    """The column by key of the run, and what a reader should know of it.

    Args:
      study: nothing is measured unless it has ``affine``. runs: of it. entries: of the ledger.
      book: the ledger that gets what is measured.
    """
    if not study.affine:
        return {}, []
    if importlib.util.find_spec("experiments.affine") is None:
        return {}, [f"No column '{HEADING}': experiments.affine is not there."]
    column, absent = {}, 0
    for run in (run for run in runs if "summary" in entries.get(run.key, {})):
        key = f"{run.key} # affine"
        if key not in entries and not (run.workdir / "checkpoints").exists():
            absent += 1  # on another machine
            continue
        if key not in entries:
            entries[key] = {"key": key, "summary": {"affine_error": error_of(run)}}
            ledger.append(book, entries[key])
        column[run.key] = {HEADING: entries[key]["summary"]["affine_error"]}
    said = ", ".join(f"{name} ±{width:g}" for name, width in RANGES.items())
    notes = [f"Affine: every test image once, {said}, uniform, about one for scales."]
    if absent:
        return {}, [f"No column '{HEADING}': {absent} runs have no checkpoint on this machine."]
    return column, notes


def error_of(run: Run) -> float:
    """Error in percent over transformed test images, of the last checkpoint of a run."""
    setup = loop.prepare(run.config)
    with io.Checkpoints(run.workdir) as checkpoints:
        state = checkpoints.restore(loop.initial_state(setup, couplings=False))
    images, labels = setup.stream.held_out("test")
    values = loop.evaluator(setup)(state.params, transformed(images), labels)
    return round(100 * float(1 - values["accuracy"].mean()), 4)


def transformed(images: np.ndarray) -> np.ndarray:
    """Images ``[N, H, W, C]`` uint8, each transformed by numbers of its own."""
    rng = np.random.default_rng(SEED)
    widths = rng.uniform(-1, 1, (len(RANGES), len(images))) * np.array([*RANGES.values()])[:, None]
    numbers = {n: (1 + w if "scale" in n else w) for n, w in zip(RANGES, widths)}
    warp = _warp()
    parts = [
        warp(images[n : n + 500], {k: v[n : n + 500] for k, v in numbers.items()})
        for n in range(0, len(images), 500)
    ]
    return np.concatenate(parts)


def _warp() -> Callable:
    import jax
    import jax.numpy as jnp

    from experiments import affine

    @jax.jit
    def warp(images, numbers):
        moved = jax.vmap(lambda x, t: affine.warp(x, affine.Affine(**t)))(
            images.astype(jnp.float32), numbers
        )
        return jnp.clip(jnp.round(moved), 0, 255).astype(jnp.uint8)

    return lambda images, numbers: np.asarray(
        warp(images, {k: v.astype(np.float32) for k, v in numbers.items()})
    )
