"""Intervals and tests against SciPy, closed forms and values in print."""

import itertools

import numpy as np
import pytest
from scipy import stats

from experiments.sweeps import statistics
from experiments.sweeps.statistics import Comparison, Interval


def test_interval_of_a_mean():
    values = np.random.default_rng(0).normal(3, 2, 7)
    want = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert statistics.of_mean(values) == pytest.approx((want.low, want.high), rel=1e-12)
    # Three trials: t = 4.303 of any table; mean 2, deviation 1.
    assert statistics.of_mean([1, 2, 3]) == pytest.approx(
        (2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4
    )


# Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I, method 3.
@pytest.mark.parametrize(
    "count, total, low, high",
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_interval_of_a_rate(count, total, low, high):
    got = statistics.of_rate(count, total)
    assert got == pytest.approx((low, high), abs=5e-5)
    want = stats.binomtest(count, total).proportion_ci(method="wilson")
    assert got == pytest.approx((want.low, want.high), abs=1e-12)


def test_interval_of_a_rate_at_its_ends():
    assert statistics.of_rate(0, 9).low == 0 and statistics.of_rate(9, 9).high == 1
    mirrored = statistics.of_rate(7, 9)
    assert statistics.of_rate(2, 9) == pytest.approx((1 - mirrored.high, 1 - mirrored.low))


def test_sign_test():
    # Fagerland, Lydersen & Laake (2013), airway hyper-responsiveness: 1 and 7 discordant pairs.
    assert statistics.sign_test(1, 7) == pytest.approx(0.0703, abs=5e-5)
    assert statistics.sign_test(0, 5) == pytest.approx(2 / 32)
    assert statistics.sign_test(0, 0) == statistics.sign_test(4, 4) == 1
    for wins, losses in itertools.product((0, 3, 20, 41), (1, 8, 30)):
        want = stats.binomtest(wins, wins + losses).pvalue
        assert statistics.sign_test(wins, losses) == pytest.approx(want, rel=1e-9)


def test_holm():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.5, 0.9]) == [1, 1] and statistics.holm([]) == []
    p = np.random.default_rng(1).uniform(0, 0.2, 6)
    # By its definition: step down, stop at the first that is not rejected.
    for level in (0.02, 0.05, 0.2, 0.5):
        rejected = set()
        for rank, which in enumerate(np.argsort(p)):
            if p[which] > level / (len(p) - rank):
                break
            rejected.add(int(which))
        assert {n for n, q in enumerate(statistics.holm(list(p))) if q <= level} == rejected


def test_each_image_counts_once_for_any_number_of_seeds():
    ours = np.array([[1, 1, 0, 0, 1], [1, 0, 0, 1, 1], [1, 1, 0, 0, 0]], bool)
    theirs = np.array([[0, 1, 1, 1, 1], [0, 1, 1, 0, 0], [0, 0, 1, 0, 1]], bool)
    # Right for 3, 2, 0, 1, 2 seeds against 0, 2, 3, 1, 2.
    assert statistics.discordant(ours, theirs) == (1, 1)
    one = statistics.discordant(ours[:1], theirs[:1])
    assert one == (1, 2), "with one seed the discordant pairs of McNemar's test"
    for repeats in (1, 5):
        again = [np.repeat(x[:1], repeats, 0) for x in (ours, theirs)]
        assert statistics.discordant(*again) == one


def right(rate, seed, n=2000):
    return np.random.default_rng(seed).random(n) < rate


def test_compare():
    ours = {str(s): right(0.9, s) for s in range(3)}
    theirs = {str(s): right(0.85, 10 + s) for s in range(1, 4)}
    got = statistics.compare(ours, theirs)
    assert got.seeds == 2
    errors = [100 * (theirs[s].mean() - ours[s].mean()) for s in "12"]
    assert got.difference == pytest.approx(np.mean(errors))
    assert got.interval == pytest.approx(statistics.of_mean(errors))
    a, b = (sum(x[s].astype(int) for s in "12") for x in (ours, theirs))
    assert (got.wins, got.losses) == ((a > b).sum(), (a < b).sum())
    assert got.p == pytest.approx(stats.binomtest(got.wins, got.wins + got.losses).pvalue)
    one = statistics.compare({"0": ours["0"]}, {"0": theirs["1"]})
    assert one.interval is None and one.verdict == "one seed"
    assert statistics.compare(ours, {"7": ours["0"]}) is None
    assert statistics.compare(ours, {"0": right(0.9, 0, 10)}) is None


@pytest.mark.parametrize(
    "difference, interval, wins, losses, p, verdict",
    [
        (-1, (-1.5, -0.5), 50, 10, 0.001, "better"),
        (1, (0.5, 1.5), 10, 50, 0.001, "worse"),
        (-1, (-2.5, 0.5), 50, 10, 0.001, "undecided"),  # inside the noise of seeds
        (-1, (-1.5, -0.5), 50, 30, 0.06, "undecided"),  # inside the noise of images
        (-1, (-1.5, -0.5), 10, 50, 0.001, "undecided"),  # the two contradict each other
    ],
)
def test_differences_within_the_noise_are_undecided(difference, interval, wins, losses, p, verdict):
    made = Comparison(difference, Interval(*interval), wins, losses, p, 3)
    assert made.verdict == verdict


def test_equal_rows_rarely_differ_significantly():
    """Among many pairs of equal rows, fewer than one in twenty is found significant."""
    found = 0
    for trial in range(200):
        rng = np.random.default_rng(trial)
        easy = rng.beta(8, 1, 500)  # images differ; seeds of both rows see the same ones
        rows = [{str(s): rng.random(500) < easy for s in range(4)} for _ in range(2)]
        found += statistics.compare(*rows).verdict != "undecided"
    assert found <= 10


def test_holm_is_over_the_rows():
    made = [Comparison(-1, Interval(-2, -0.5), 50, 10, p, 3) for p in (0.03, 0.001, 0.04)]
    assert [round(c.p, 3) for c in statistics.corrected(made)] == [0.06, 0.003, 0.06]
    assert [c.verdict for c in statistics.corrected(made)] == ["undecided", "better", "undecided"]
