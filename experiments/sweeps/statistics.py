"""Confidence intervals and tests for test errors of a few seeds on one test set.

Intervals are at the 95% level. Every function takes plain numbers.
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
    r"""Computes Student's interval of a mean, :math:`\bar x \pm t_{n-1} s / \sqrt n`.

    It is exact for normally distributed values; errors over seeds are nearly normal.

    Args:
      values: ``[n]``, n at least 2.
    """
    n = len(values)
    half = stats.t.ppf((1 + LEVEL) / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n)
    return Interval(float(np.mean(values) - half), float(np.mean(values) + half))


def of_rate(count: int, total: int) -> Interval:
    """Computes Wilson's interval of a rate (1927), in [0, 1]; also accurate for few or no errors.

    It covers one trained network over test sets of this size, and no other seeds.

    Args:
      count: number of errors.
      total: number of examples, at least 1.
    """
    z2 = stats.norm.ppf((1 + LEVEL) / 2) ** 2
    p, n = count / total, total
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return Interval(float(low) if count else 0.0, float(high) if count < total else 1.0)


def of_paired_difference(wins: int, losses: int, total: int) -> Interval:
    """Computes Wald's interval of a difference of two error rates on the same examples, in percent.

    It covers two trained networks over test sets of this size, and no other seeds. A difference is
    -1, 0 or 1 for each example, and their mean is nearly normal.

    Args:
      wins, losses: examples on which only the second network is wrong, and only the first.
      total: number of examples.
    """
    mean = (losses - wins) / total
    variance = (wins + losses) / total - mean**2
    half = stats.norm.ppf((1 + LEVEL) / 2) * np.sqrt(variance / total)
    return Interval(float(100 * (mean - half)), float(100 * (mean + half)))


def discordant(correct: np.ndarray, baseline: np.ndarray) -> tuple[int, int]:
    """Counts images that are classified correctly by more seeds than in the baseline, and by fewer.

    An image counts once, whatever the number of seeds: seeds see the same images, and adding up
    their counts would treat each image as several. With one seed these are the two counts of
    McNemar's test.

    Args:
      correct, baseline: what was classified correctly, bool ``[seeds, images]``, the same images.
    """
    lead = correct.sum(0, dtype=int) - baseline.sum(0, dtype=int)
    return int((lead > 0).sum()), int((lead < 0).sum())


def sign_test(wins: int, losses: int) -> float:
    """Computes the exact two-sided p of equally likely wins and losses: McNemar's exact test."""
    n = wins + losses
    return min(1.0, 2 * float(stats.binom.cdf(min(wins, losses), n, 0.5))) if n else 1.0


def holm(p: list[float]) -> list[float]:
    """Applies Holm's correction (1979) to values p; the order is kept."""
    order = np.argsort(p, kind="stable")
    scaled = np.asarray(p, float)[order] * np.arange(len(p), 0, -1)
    corrected = np.minimum(np.maximum.accumulate(scaled), 1.0)
    result = np.empty(len(p))
    result[order] = corrected
    return result.tolist()


class Comparison(NamedTuple):
    """A row of a table and its baseline, compared for the same seeds and the same images."""

    difference: float  # mean over seeds of the error minus the baseline's, percentage points
    interval: Interval | None  # of the difference; None with one seed
    wins: int  # see :func:`discordant`
    losses: int
    p: float  # of :func:`sign_test`, or after :func:`holm`
    seeds: int

    @property
    def verdict(self) -> str:
        """Better or worse, if the difference exceeds the noise of images and that of seeds.

        Both are required: p over images below 5%, and an interval over seeds without zero. With
        one seed the noise of training is unknown, so there is no verdict.
        """
        if self.interval is None:
            return "one seed"
        sure = self.p < 1 - LEVEL and (self.interval.low > 0 or self.interval.high < 0)
        agree = (self.difference > 0) == (self.losses > self.wins)
        return ("worse" if self.difference > 0 else "better") if sure and agree else "undecided"


def compare(correct: dict[str, np.ndarray], baseline: dict[str, np.ndarray]) -> Comparison | None:
    """Compares a row with its baseline.

    Args:
      correct, baseline: by seed, which test images were classified correctly, bool ``[images]``.

    Returns:
      The comparison over the seeds that both have; None if there is none, or the numbers of images
      differ.
    """
    seeds = [seed for seed in correct if seed in baseline]
    if not seeds or len({len(v[seed]) for v in (correct, baseline) for seed in seeds}) > 1:
        return None
    a, b = (np.stack([v[seed] for seed in seeds]) for v in (correct, baseline))
    differences = 100 * (b.mean(1) - a.mean(1))
    interval = of_mean(differences) if len(seeds) > 1 else None
    wins, losses = discordant(a, b)
    p = sign_test(wins, losses)
    return Comparison(float(differences.mean()), interval, wins, losses, p, len(seeds))


def corrected(comparisons: list[Comparison]) -> list[Comparison]:
    """Returns comparisons with the values p corrected by :func:`holm`."""
    return [c._replace(p=p) for c, p in zip(comparisons, holm([c.p for c in comparisons]))]
