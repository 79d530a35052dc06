"""How long the rest of a sweep takes, from what its finished runs took."""

import numpy as np

from experiments import groups
from experiments.config import Config
from experiments.plan import Run


def seconds_left(
    runs: list[Run], missing: list[Run], entries: dict[str, dict], defaults: Config, jobs: int
) -> float | None:
    """Time that missing runs need: what runs of the same kind took, or else all on average.

    Args:
      runs: of the sweep. missing: those that are to be done. entries: of the ledger.
      defaults: of the program. jobs: processes at once.

    Returns:
      None where nothing has been measured.
    """
    measured: dict[str, list[float]] = {}
    for run in runs:
        if "summary" in entries.get(run.key, {}):
            kind = groups.family(run, defaults)
            measured.setdefault(kind, []).append(entries[run.key]["seconds"])
    if not measured:
        return None if missing else 0.0
    usual = float(np.mean(sum(measured.values(), [])))
    kinds = (measured.get(groups.family(run, defaults), [usual]) for run in missing)
    return float(sum(map(np.mean, kinds))) / jobs


def in_words(seconds: float | None) -> str:
    """A length of time."""
    if seconds is None:
        return "unknown time"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
