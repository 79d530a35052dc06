"""What test errors of a few seeds, on one test set, allow to be said.

Intervals are of 95%. Every function takes plain numbers.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


def of_mean(values) -> Interval:
    r"""Student's interval of a mean, :math:`\bar x \pm t_{n-1} s / \sqrt n`.

    It holds for normally distributed values, such as errors over seeds nearly are.

    Args:
      values: ``[n]``, n at least 2.
    """
    n = len(values)
    half = stats.t.ppf((1 + LEVEL) / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n)
    return Interval(float(np.mean(values) - half), float(np.mean(values) + half))


def of_rate(count: int, total: int) -> Interval:
    """Wilson's interval of a rate (1927), in [0, 1]; also good for few or no errors.

    Of one trained network over test sets of this size: it says nothing of other seeds.

    Args:
      count: errors. total: examples, at least 1.
    """
    z2 = stats.norm.ppf((1 + LEVEL) / 2) ** 2
    p, n = count / total, total
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return Interval(float(low) if count else 0.0, float(high) if count < total else 1.0)


def discordant(ours: np.ndarray, theirs: np.ndarray) -> tuple[int, int]:
    """Images on which we are right more often than they, and less often.

    Args:
      ours, theirs: what was classified rightly, bool ``[seeds, images]``, the same images.

    An image counts once, however many seeds there are: seeds see the same images, and adding up
    their counts would take each image for several. With one seed these are the two counts of
    McNemar's test.
    """
    lead = ours.sum(0, dtype=int) - theirs.sum(0, dtype=int)
    return int((lead > 0).sum()), int((lead < 0).sum())


def sign_test(wins: int, losses: int) -> float:
    """Exact two-sided p of wins and losses being equally likely: McNemar's exact test."""
    n = wins + losses
    return min(1.0, 2 * float(stats.binom.cdf(min(wins, losses), n, 0.5))) if n else 1.0


def holm(p: list[float]) -> list[float]:
    """Values p after Holm's correction (1979) for their number, in the order given."""
    order = np.argsort(p, kind="stable")
    scaled = np.asarray(p, float)[order] * np.arange(len(p), 0, -1)
    corrected = np.minimum(np.maximum.accumulate(scaled), 1.0)
    result = np.empty(len(p))
    result[order] = corrected
    return result.tolist()


class Comparison(NamedTuple):
    """Two rows of a table, run by run of the same seed and image by image."""

    difference: float  # mean over seeds of our error less theirs, percentage points
    interval: Interval | None  # of it; None with one seed
    wins: int  # see :func:`discordant`
    losses: int
    p: float  # of :func:`sign_test`, or after :func:`holm`
    seeds: int

    @property
    def verdict(self) -> str:
        """Better or worse, where that is beyond the noise of images and that of seeds.

        Both are asked: p below 5%, of the images, and an interval over seeds without zero. With
        one seed the noise of training is unknown, so that nothing is said.
        """
        if self.interval is None:
            return "one seed"
        sure = self.p < 1 - LEVEL and (self.interval.low > 0 or self.interval.high < 0)
        agree = (self.difference > 0) == (self.losses > self.wins)
        return ("worse" if self.difference > 0 else "better") if sure and agree else "undecided"


def compare(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> Comparison | None:
    """Compare two rows.

    Args:
      ours, theirs: by seed, which test images were classified rightly, bool ``[images]``.

    Returns:
      Of the seeds that both have; None if there is none, or the images are not as many.
    """
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds or len({len(v[seed]) for v in (ours, theirs) for seed in seeds}) > 1:
        return None
    a, b = (np.stack([v[seed] for seed in seeds]) for v in (ours, theirs))
    differences = 100 * (b.mean(1) - a.mean(1))
    interval = of_mean(differences) if len(seeds) > 1 else None
    wins, losses = discordant(a, b)
    p = sign_test(wins, losses)
    return Comparison(float(differences.mean()), interval, wins, losses, p, len(seeds))


def corrected(comparisons: list[Comparison]) -> list[Comparison]:
    """With the values p after :func:`holm`."""
    return [c._replace(p=p) for c, p in zip(comparisons, holm([c.p for c in comparisons]))]
