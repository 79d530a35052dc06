"""Paths of features along a transformation."""

import numpy as np
import pytest

from experiments.analysis import feature_paths

RNG = np.random.default_rng(0)
X = np.linspace(-30, 30, 13)  # degrees


def knowing(images, labels, t):
    """Returns features that encode the transformation, in a way of each class, but no thickness."""
    known = np.stack([t.rotation / 30, t.shear / 0.3, np.log(t.scale_x), t.shift_x, t.shift_y], 1)
    own = np.random.default_rng(images[:, 5, 5].astype(int).sum()).normal(size=(len(labels), 1))
    return np.concatenate([known * (1 + labels[:, None]) + own, own], axis=1)


def noise(images, labels, t):
    return RNG.normal(size=(len(labels), 20))


def some(n):
    return RNG.integers(0, 256, (n, 28, 28, 1)).astype(np.uint8), np.arange(n) % 3


def test_metrics_of_an_informed_and_an_uninformed_network():
    train, test = some(600), some(300)
    amounts = np.linspace(-3, 3, feature_paths.STEPS)
    paths = feature_paths.compute_paths(knowing, *test, "shift_x", amounts)
    assert paths.shape == (300, 13, 6)
    found = feature_paths.path_metrics(paths, amounts, test[1])
    assert found["linear"] == found["quadratic"] == 1 and found["still"] == 0
    assert found["dimensions"] == 1 and found["shares"][2][0] == [3, 1.0]
    assert found["direction_changes"][6] == 0 and found["amounts"][0] == -3
    found = feature_paths.probe_all(knowing, train, test)
    assert list(found) == ["probes"]
    scores = {name: probe["pooled"] for name, probe in found["probes"].items()}
    assert min(v for k, v in scores.items() if k != "thickness") > 0.999
    assert abs(scores["thickness"]) < 0.1
    assert set(scores) == {*feature_paths.MAX_AMOUNTS, "thickness"}
    found = feature_paths.probe_all(noise, train, test)
    assert list(found) == ["probes", "probes_of_components"]
    for probes in found.values():
        assert max(abs(probe["pooled"]) for probe in probes.values()) < 0.15
    paths = feature_paths.compute_paths(noise, *test, "shear", X)
    found = feature_paths.path_metrics(paths, X, test[1])
    assert abs(found["linear"]) < 0.03 and found["direction"] == pytest.approx(0.96, abs=0.05)
    assert found["dimensions"] == pytest.approx(20, abs=0.2)  # 12 of 13 are a step away


def test_constant_paths_have_no_linearity():
    found = feature_paths.path_metrics(np.ones((4, 13, 2)), X, np.zeros(4, int))
    assert found["linear"] is found["quadratic"] is None and found["still"] == 1


def test_typical_path_is_in_standard_deviations():
    start = np.array([[0.0, 5, 1, 1], [2, 5, 1, 1]])  # deviations 1, 0, 0 and 0: 1/2 of all
    steps = np.array([3.0, 1, 0, 0])
    paths = start[:, None] + steps * X[:, None]
    np.testing.assert_allclose(feature_paths.mean_path(paths), 2 * steps * X[:, None], atol=1e-12)
    assert not feature_paths.mean_path(np.ones((2, 13, 4)) + X[:, None]).any(), "all images alike"


def test_transformations_of_amounts():
    t = feature_paths.transformations("scale", np.log([0.8, 1.25]))
    np.testing.assert_allclose(t.scale_x, [0.8, 1.25], rtol=1e-6)
    np.testing.assert_array_equal(t.scale_x, t.scale_y)
    assert t.rotation.tolist() == [0, 0]
    t = feature_paths.transformations("shift_y", np.array([1.0, -2.0]))
    assert t.shift_y.tolist() == [1, -2] and t.scale_x.tolist() == [1, 1]
