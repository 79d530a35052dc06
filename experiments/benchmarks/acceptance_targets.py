"""What an accelerator is required to reach, judged by the results of an acceptance run."""

from collections.abc import Callable
from typing import NamedTuple

from experiments.plots.text_tables import markdown

MNIST = 60_000  # training images


class Target(NamedTuple):
    """A bound of a value that is computed from the results of all parts."""

    name: str
    value: Callable[[dict], float]  # of the results by name of the part
    bound: float
    least: bool = False  # whether the bound is a lower one


def images_per_second(results: dict, precision: str, network: str = "capsjax") -> float:
    """Returns the fastest training over implementations of routing; zero where there is none."""
    rates = [
        row["images_per_second"]["median"]
        for name, result in results.items()
        if name.startswith(f"step, {precision},")
        for row in result[-1]["rows"]
        if row["function"] == "training" and row["network"].startswith(network)
    ]
    return max(rates, default=0.0)


def epoch_seconds(precision: str) -> Callable[[dict], float]:
    """Returns the function that computes the seconds of an MNIST epoch."""
    return lambda results: MNIST / images_per_second(results, precision)


def speedup_over_torch(results: dict) -> float:
    """Returns the training speed relative to PyTorch, eager or compiled, whichever is faster."""
    return images_per_second(results, "float32") / images_per_second(results, "float32", "torch")


# They are set for one H200; elsewhere they show how far a device is from that.
TARGETS = (
    Target("MNIST epoch in bfloat16, s", epoch_seconds("bfloat16"), 1.0),
    Target("MNIST epoch in float32, s", epoch_seconds("float32"), 2.0),
    Target("MNIST epoch in TF32, s", epoch_seconds("tf32"), 2.0),
    Target("training step, times the speed of PyTorch", speedup_over_torch, 5.0, least=True),
    Target("test error, %", lambda results: results["training"][-1]["test_error"], 0.35),
    Target("training, s", lambda results: results["training"][-1]["training_seconds"], 60.0),
)


def judge(done: list[dict]) -> list[dict]:
    """Returns every target with its value, which is None where a part that it needs failed."""
    results = {one["name"]: one["results"] for one in done if one["results"]}
    found = []
    for target in TARGETS:
        try:
            value = target.value(results)
        except (KeyError, ZeroDivisionError):
            value = None
        met = value is not None and (
            value >= target.bound if target.least else value <= target.bound
        )
        row = {"target": target.name, "value": None if value is None else round(value, 3)}
        found.append(row | {"bound": target.bound, "least": target.least, "met": met})
    return found


def table(done: list[dict], judged: list[dict]) -> str:
    """Returns parts and targets as tables in Markdown."""
    parts = []
    for one in done:
        status = "done" if one["status"] == 0 else f"failed ({one['status']}): {one['error']}"
        parts.append([one["name"], f"{one['seconds']:.0f}", status])
    targets = []
    for row in judged:
        value = "not measured" if row["value"] is None else f"{row['value']:g}"
        bound = f"{'≥' if row['least'] else '≤'} {row['bound']:g}"
        verdict = "met" if row["met"] else "missed" if row["value"] is not None else ""
        targets.append([row["target"], bound, value, verdict])
    headings = ["target", "asked", "measured", ""]
    return f"{markdown(['part', 'seconds', 'status'], parts)}\n\n{markdown(headings, targets)}"
