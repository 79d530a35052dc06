"""How long an exported network takes for a batch, alongside the network in JAX."""

import time
from collections.abc import Callable

import numpy as np

from experiments.exchange.network import Network, random_images
from experiments.exchange.verification import Runner
from experiments.plots.text_tables import markdown

BATCHES = (1, 128)
WARM = 3  # calls that are not counted, the first of which compiles
SECONDS = 2.0  # of each measurement, at least
CALLS = 10  # at least


def measure(network: Network, runners: dict[str, Runner]) -> list[dict]:
    """Measures calls with images in memory, to outputs in memory; the runners take turns.

    Args:
      network: for its images.
      runners: by name.

    Returns:
      Rows: runtime, batch, and milliseconds, the median and the range of the calls.
    """
    rows = []
    for batch in BATCHES:
        images = random_images(network, batch)
        taken: dict[str, list[float]] = {name: [] for name in runners}
        for run in runners.values():
            for _ in range(WARM):
                run(images)
        while min(map(len, taken.values())) < CALLS or min(map(sum, taken.values())) < SECONDS:
            for name, run in runners.items():
                taken[name].append(_seconds(run, images))
        rows += [{"runtime": n, "batch": batch, "milliseconds": _of(t)} for n, t in taken.items()]
    return rows


def _seconds(run: Callable, images) -> float:
    before = time.perf_counter()
    run(images)
    return time.perf_counter() - before


def _of(seconds: list[float]) -> dict:
    values = {"median": np.median(seconds), "min": min(seconds), "max": max(seconds)}
    return {name: round(1000 * float(value), 3) for name, value in values.items()} | {
        "calls": len(seconds)
    }


def table(result: dict) -> str:
    """Returns the measurement of a network as a table in Markdown."""
    rows = []
    for row in result["rows"]:
        took, batch = row["milliseconds"], row["batch"]
        ranged = f"{took['min']:.2f} to {took['max']:.2f}"
        rate = f"{1000 * batch / took['median']:.0f}"
        rows.append([row["runtime"], str(batch), f"{took['median']:.2f}", ranged, rate])
    text = markdown(["runtime", "images", "ms", "range", "images/s"], rows)
    kilobytes = f"{result['file_bytes'] / 1000:,.0f} kB, its weights "
    kilobytes += f"{result['weight_bytes'] / 1000:,.0f} kB"
    return f"{result['network']}: {result['format']} file {kilobytes}.\n\n{text}"
