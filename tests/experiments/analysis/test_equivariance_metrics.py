"""Measures of how features follow a transformation, against scikit-learn and closed forms."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from experiments.analysis import equivariance_metrics
from experiments.analysis.equivariance_metrics import Examples

RNG = np.random.default_rng(0)
X = np.linspace(-30, 30, 13)  # degrees
START = 6


def linear_paths(images=40, dims=5):
    slope, offset = RNG.normal(size=(2, images, 1, dims))
    return offset + slope * X[:, None] / 30


def test_a_linear_path_is_explained_and_noise_is_not():
    linear = equivariance_metrics.adjusted_r2(linear_paths(), X, 1)
    np.testing.assert_allclose(linear, 1, atol=1e-12)
    noise = equivariance_metrics.adjusted_r2(RNG.normal(size=(20000, 13, 4)), X, 1)
    assert abs(noise.mean()) < 4 * noise.std() / np.sqrt(20000) < 0.003
    noise = equivariance_metrics.adjusted_r2(RNG.normal(size=(20000, 13, 4)), X, 2)
    assert abs(noise.mean()) < 4 * noise.std() / np.sqrt(20000) < 0.003


def test_curves_need_the_second_degree():
    paths = linear_paths() + RNG.normal(size=(40, 1, 5)) * X[:, None] ** 2 / 900
    np.testing.assert_allclose(equivariance_metrics.adjusted_r2(paths, X, 2), 1, atol=1e-12)
    assert equivariance_metrics.adjusted_r2(paths, X, 1).max() < 0.999
    # A parabola about the middle has no linear part: 1 - (T - 1) / (T - 2).
    parabola = np.square(X)[None, :, None]
    np.testing.assert_allclose(equivariance_metrics.adjusted_r2(parabola, X, 1), 1 - 12 / 11)


def test_adjusted_r2_equals_least_squares():
    paths, x = RNG.normal(size=(3, 7, 2)), np.sort(RNG.uniform(size=7))
    for degree in (1, 2):
        found = equivariance_metrics.adjusted_r2(paths, x, degree)
        for path, got in zip(paths, found, strict=True):
            fits = [np.polyval(np.polyfit(x, y, degree), x) for y in path.T]
            left = sum(np.square(y - fit).sum() for y, fit in zip(path.T, fits, strict=True))
            total = sum(np.square(y - y.mean()).sum() for y in path.T)
            assert got == pytest.approx(1 - (left / (6 - degree)) / (total / 6), abs=1e-9)


def test_adjusted_r2_of_a_constant_path_is_nan():
    paths = np.concatenate([np.ones((1, 13, 3)), linear_paths(1, 3)])
    assert np.isnan(equivariance_metrics.adjusted_r2(paths, X, 1)).tolist() == [True, False]


def test_variance_shares_are_those_of_the_slopes():
    paths = RNG.normal(size=(50, 1, 3)) + np.array([0.0, 3.0, 4.0]) * X[:, None]
    shares = equivariance_metrics.variance_shares(paths)
    np.testing.assert_allclose(shares, [0, 9 / 25, 16 / 25], atol=1e-12)
    assert equivariance_metrics.participation_ratio(np.full(16, 1 / 16)) == pytest.approx(16)
    assert equivariance_metrics.participation_ratio(np.eye(16)[3]) == 1
    assert not equivariance_metrics.variance_shares(np.ones((2, 3, 4))).any()


def test_length_changes_alone_and_direction_changes_alone():
    """Uses poses that stretch, and poses that turn by the angle, of two labelled classes."""
    labels = np.repeat([0, 1], 50)
    first = RNG.normal(size=(100, 2)) + 5 * labels[:, None]
    stretched = first[:, None] * np.exp(X / 60)[:, None]
    change = equivariance_metrics.change(stretched, START, labels)
    assert change.direction.max() < 1e-12 and change.length[START] == 0
    assert np.all(np.delete(change.length, START) > 0)
    angle = np.arctan2(*first.T[::-1])[:, None] + np.radians(X)
    norm = np.linalg.norm(first, axis=1)
    turned = norm[:, None, None] * np.stack([np.cos(angle), np.sin(angle)], axis=2)
    change = equivariance_metrics.change(turned, START, labels)
    assert change.length.max() < 1e-7
    # The chord of the angle, in the unit of the class: between two images of one of them.
    unit = [u / np.linalg.norm(u) for u in first]
    apart = [
        np.square(a - b).sum()
        for label in (0, 1)
        for i, a in enumerate(unit)
        for j, b in enumerate(unit)
        if i != j and labels[i] == labels[j] == label
    ]
    want = 2 * np.sin(np.radians(abs(X)) / 2) / np.sqrt(np.mean(apart))
    np.testing.assert_allclose(change.direction, want, rtol=1e-9, atol=1e-9)


def test_another_image_of_the_class_is_one_unit_away():
    labels = np.repeat(np.arange(10), 2000)
    paths = RNG.normal(size=(20000, 3, 4)) + 3 * labels[:, None, None]
    change = equivariance_metrics.change(paths, 0, labels)
    np.testing.assert_allclose(change.length, [0, 1, 1], atol=0.02)
    np.testing.assert_allclose(change.direction, [0, 1, 1], atol=0.02)


def test_dead_features_have_no_direction():
    change = equivariance_metrics.change(np.zeros((4, 3, 2)), 0, np.zeros(4))
    assert not change.length.any() and not change.direction.any()


@pytest.mark.parametrize("penalty", [1e-5, 0.1, 10.0])
def test_ridge_equals_scikit_learn(penalty):
    x, y = RNG.normal(size=(60, 7)) + 2, RNG.normal(size=60) - 3
    w, b = equivariance_metrics.ridge(x, y, penalty)
    theirs = Ridge(alpha=60 * penalty).fit(x, y)
    np.testing.assert_allclose(w, theirs.coef_, atol=1e-10)
    assert b == pytest.approx(theirs.intercept_)


def examples(n, noise=0.0, dims=6):
    """Returns examples whose target each class encodes in another direction and sign."""
    labels, target = RNG.integers(0, 3, n), RNG.uniform(-30, 30, n)
    ways = np.eye(3, dims) * [[1.0], [-2.0], [3.0]]
    features = target[:, None] * ways[labels] + 7.0 * labels[:, None]
    return Examples(features + noise * RNG.normal(size=(n, dims)), target, labels)


def test_probes_find_a_linear_target_in_each_class():
    found = equivariance_metrics.probe(examples(300), examples(200))
    assert found.pooled == pytest.approx(1, abs=1e-6)
    assert sorted(found.per_class) == [0, 1, 2] and min(found.per_class.values()) > 1 - 1e-6


def test_probes_find_nothing_in_noise():
    train, test = (examples(n)._replace(features=RNG.normal(size=(n, 6))) for n in (3000, 3000))
    assert abs(equivariance_metrics.probe(train, test).pooled) < 0.02


def test_probes_are_scored_as_scikit_learn_does():
    train, test = examples(300, 20.0), examples(200, 20.0)
    found = equivariance_metrics.probe(train, test)
    left = total = 0
    for label, got in found.per_class.items():
        fit, held = (equivariance_metrics._of_class(part, label) for part in (train, test))
        mean, scale = fit.features.mean(0), np.sqrt(fit.features.var(0).mean())
        x, z = (fit.features - mean) / scale, (held.features - mean) / scale
        few = len(x) * 4 // 5
        model = min(
            (
                Ridge(alpha=p * few).fit(x[:few], fit.target[:few])
                for p in equivariance_metrics.PENALTIES
            ),
            key=lambda m: np.square(m.predict(x[few:]) - fit.target[few:]).sum(),
        )
        model.set_params(alpha=model.alpha / few * len(x)).fit(x, fit.target)
        assert got == pytest.approx(r2_score(held.target, model.predict(z)))
        left += np.square(held.target - model.predict(z)).sum()
        total += np.square(held.target - held.target.mean()).sum()
    assert found.pooled == pytest.approx(1 - left / total) and 0.1 < found.pooled < 0.95


def test_rarely_active_feature_does_not_change_the_probe():
    train, test = examples(300, 5.0), examples(200, 5.0)
    for part in (train, test):
        part.features[:, 5] = 0
    well = equivariance_metrics.probe(train, test).pooled
    train.features[0, 5], test.features[::7, 5] = 0.01, 1.0
    assert equivariance_metrics.probe(train, test).pooled == pytest.approx(well, abs=0.01)


def test_principal_components_keep_the_largest_variance():
    def made(n, strong):
        target = RNG.normal(size=n)
        features = RNG.normal(size=(n, 20)) * np.geomspace(10, 0.1, 20)
        features[:, 0 if strong else 19] = target * (10 if strong else 0.1)
        return Examples(features, target, np.zeros(n, int))

    assert equivariance_metrics.probe(made(500, True), made(500, True), 4).pooled > 0.99
    assert abs(equivariance_metrics.probe(made(500, False), made(500, False), 4).pooled) < 0.05
    assert equivariance_metrics.probe(made(500, False), made(500, False)).pooled > 0.99


def test_classes_with_too_few_examples_are_left_out():
    train, test = examples(300), examples(200)
    few = Examples(*(v[train.labels != 1] for v in train))
    assert sorted(equivariance_metrics.probe(few, test).per_class) == [0, 2]
    assert np.isnan(equivariance_metrics.probe(Examples(*(v[:5] for v in train)), test).pooled)


def test_thickness_of_a_bar_and_of_a_disc():
    bar = np.zeros((2, 500, 20, 1))
    bar[0, 20:420, 8:12] = 1  # 400 long, 4 wide: 2 * 1600 / 808, but for its corners
    bar[1, 20:420, 8:15] = 0.3  # of any brightness
    want = [2 * 1600 / 808, 2 * 2800 / 814]
    np.testing.assert_allclose(equivariance_metrics.thickness(bar), want, rtol=2e-3)
    y, x = np.mgrid[-40:41, -40:41]
    for radius in (5, 12.5):
        # Thresholds are circles of radii r, within 2 of this one: 2 E(pi r^2) / E(2 pi r).
        disc = np.clip((radius + 2 - np.hypot(x, y)) / 4, 0, 1)[None, ..., None]
        want = radius + 4**2 / 12 / radius
        assert equivariance_metrics.thickness(disc)[0] == pytest.approx(want, rel=0.02)
    assert equivariance_metrics.thickness(np.zeros((1, 5, 5, 1), np.uint8)).tolist() == [0]
    np.testing.assert_allclose(
        equivariance_metrics.thickness((255 * bar).astype(np.uint8)),
        equivariance_metrics.thickness(bar),
        rtol=0.01,
    )
