"""Measures of equivariance on features whose answers have closed forms, and the program."""

import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from helpers import TINY, read_json, train
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from experiments import equivariance, plots
from experiments.analysis import equivariance_metrics, equivariance_report, feature_paths, saved_run
from experiments.analysis.equivariance_metrics import Examples
from experiments.config import UserError
from experiments.data.affine import Affine, warp
from experiments.equivariance import Flags
from experiments.plots.equivariance import _pose_paths_figure, _probes_figure
from experiments.tasks import figures

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


def test_explained_is_what_least_squares_says():
    paths, x = RNG.normal(size=(3, 7, 2)), np.sort(RNG.uniform(size=7))
    for degree in (1, 2):
        found = equivariance_metrics.adjusted_r2(paths, x, degree)
        for path, got in zip(paths, found, strict=True):
            fits = [np.polyval(np.polyfit(x, y, degree), x) for y in path.T]
            left = sum(np.square(y - fit).sum() for y, fit in zip(path.T, fits, strict=True))
            total = sum(np.square(y - y.mean()).sum() for y in path.T)
            assert got == pytest.approx(1 - (left / (6 - degree)) / (total / 6), abs=1e-9)


def test_a_path_that_stands_still_is_not_a_number():
    paths = np.concatenate([np.ones((1, 13, 3)), linear_paths(1, 3)])
    assert np.isnan(equivariance_metrics.adjusted_r2(paths, X, 1)).tolist() == [True, False]


def test_shares_are_those_of_the_slopes():
    paths = RNG.normal(size=(50, 1, 3)) + np.array([0.0, 3.0, 4.0]) * X[:, None]
    shares = equivariance_metrics.variance_shares(paths)
    np.testing.assert_allclose(shares, [0, 9 / 25, 16 / 25], atol=1e-12)
    assert equivariance_metrics.participation_ratio(np.full(16, 1 / 16)) == pytest.approx(16)
    assert equivariance_metrics.participation_ratio(np.eye(16)[3]) == 1
    assert not equivariance_metrics.variance_shares(np.ones((2, 3, 4))).any()


def test_length_changes_alone_and_direction_changes_alone():
    """Poses that stretch, and poses that turn by the angle; labels tell classes apart."""
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
    apart = [np.square(a - b).sum() for label in (0, 1)
             for i, a in enumerate(unit) for j, b in enumerate(unit)
             if i != j and labels[i] == labels[j] == label]
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
def test_ridge_is_that_of_scikit_learn(penalty):
    x, y = RNG.normal(size=(60, 7)) + 2, RNG.normal(size=60) - 3
    w, b = equivariance_metrics.ridge(x, y, penalty)
    theirs = Ridge(alpha=60 * penalty).fit(x, y)
    np.testing.assert_allclose(w, theirs.coef_, atol=1e-10)
    assert b == pytest.approx(theirs.intercept_)


def examples(n, noise=0.0, dims=6):
    """A target that every class has in another direction, with another sign."""
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
        model = min((Ridge(alpha=p * few).fit(x[:few], fit.target[:few])
                     for p in equivariance_metrics.PENALTIES),
                    key=lambda m: np.square(m.predict(x[few:]) - fit.target[few:]).sum())
        model.set_params(alpha=model.alpha / few * len(x)).fit(x, fit.target)
        assert got == pytest.approx(r2_score(held.target, model.predict(z)))
        left += np.square(held.target - model.predict(z)).sum()
        total += np.square(held.target - held.target.mean()).sum()
    assert found.pooled == pytest.approx(1 - left / total) and 0.1 < found.pooled < 0.95


def test_a_feature_that_is_hardly_ever_alive_does_no_harm():
    train, test = examples(300, 5.0), examples(200, 5.0)
    for part in (train, test):
        part.features[:, 5] = 0
    well = equivariance_metrics.probe(train, test).pooled
    train.features[0, 5], test.features[::7, 5] = 0.01, 1.0
    assert equivariance_metrics.probe(train, test).pooled == pytest.approx(well, abs=0.01)


def test_principal_components_keep_what_varies_most():
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
        equivariance_metrics.thickness(bar), rtol=0.01)


# Networks


def knowing(images, labels, t):
    """Features of a network that knows what was done, in a way of each class, and no thickness."""
    known = np.stack([t.rotation / 30, t.shear / 0.3, np.log(t.scale_x), t.shift_x, t.shift_y], 1)
    own = np.random.default_rng(images[:, 5, 5].astype(int).sum()).normal(size=(len(labels), 1))
    return np.concatenate([known * (1 + labels[:, None]) + own, own], axis=1)


def noise(images, labels, t):
    return RNG.normal(size=(len(labels), 20))


def some(n):
    return RNG.integers(0, 256, (n, 28, 28, 1)).astype(np.uint8), np.arange(n) % 3


def test_a_network_that_knows_and_one_that_does_not():
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


def test_what_stands_still_has_no_linearity():
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


@pytest.fixture(scope="module")
def cnn_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cnn") / "run"
    config = dataclasses.replace(
        TINY, model="cnn", batch_size=16, workdir=str(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "of_finished_run", lambda *_: [])
        train(config)
    return folder


def test_features_are_the_poses_of_the_labels(tiny_run, cnn_run, monkeypatch):
    """Of 130 images in three calls, the last batch filled; of a CNN what the last layer sees."""
    monkeypatch.setattr(feature_paths, "BATCH", 32)
    monkeypatch.setattr(feature_paths, "BATCHES", 2)
    for folder in (tiny_run, cnn_run):
        opened = saved_run.open_run(str(folder), accelerator="cpu", examples=True)
        setup, params = opened.setup, opened.params
        images, labels = (a[:130] for a in (setup.dataset.test_images, setup.dataset.test_labels))
        turns = np.linspace(-20, 20, 130).astype(np.float32)
        t = feature_paths.transformations("rotation", turns)
        got = feature_paths.make_features(setup, params)(images, labels, t)
        pixels = jnp.asarray(images[126:], jnp.float32) / 255
        turned = jax.jit(jax.vmap(lambda p, a: warp(p, Affine(rotation=a))))
        prediction = jax.jit(setup.model.apply)(params, turned(pixels, jnp.asarray(turns[126:])))
        if folder == tiny_run:
            assert got.shape == (130, 16)
            want = [prediction.pose[n, label] for n, label in enumerate(labels[126:])]
            np.testing.assert_allclose(got[126:], want, atol=1e-5)
        else:
            last = params["dense"][1]
            logits = got[126:] @ np.asarray(last["kernel"]) + np.asarray(last["bias"])
            np.testing.assert_allclose(logits, prediction.scores, atol=1e-5)


def test_program(tiny_run, cnn_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(feature_paths, "STEPS", 5)
    monkeypatch.setattr(equivariance_report, "STEPS", 5)
    flags = Flags(run=str(tiny_run), compare=str(cnn_run), images=60, train_images=150,
                  output=str(tmp_path / "new" / "e"), accelerator="cpu", cache_dir="none")
    equivariance.main(flags)
    out = capsys.readouterr().out
    found = read_json(tmp_path / "new" / "e.json")
    capsnet, cnn = found["networks"]
    assert (capsnet["features"], cnn["features"]) == (16, 32)
    assert "probes_of_components" in cnn and "probes_of_components" not in capsnet
    for network in found["networks"]:
        assert set(network["paths"]) == set(feature_paths.MAX_AMOUNTS)
        assert (network["images"], network["train_images"]) == (60, 150)
        assert all(-1 < path["linear"] <= 1 for path in network["paths"].values())
    text = (tmp_path / "new" / "e.md").read_text()
    body, _, foot = text.rpartition("\n\n")
    command = "python -m experiments.equivariance --run=DIR --compare=DIR --images=60"
    assert found["command"] == f"{command} --train_images=150"
    assert foot == f"`{found['command']}`, commit {found['commit']}\n"
    assert body in out and text.count("\n| ") == 13 and "| thickness |  |" in text
    for name in ("e_paths.png", "e_probes.png"):
        assert matplotlib.image.imread(tmp_path / "new" / name).shape[1] == 1050
    assert not (tiny_run / "equivariance.json").exists()


def test_what_the_user_can_mend(tiny_run, tmp_path):
    def fails(**changes):
        with pytest.raises(UserError) as failed:
            equivariance.main(dataclasses.replace(Flags(accelerator="cpu"), **changes))
        return str(failed.value)

    assert "--run=DIR" in fails()
    assert str(tmp_path / "none") in fails(run=str(tmp_path / "none"))
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    for path in tiny_run.iterdir():
        if path.name != "summary.json":
            (unfinished / path.name).symlink_to(path)
    assert "has not finished" in fails(run=str(unfinished))
    one = equivariance.open_finished(str(tiny_run), Flags(accelerator="cpu"))
    with pytest.MonkeyPatch.context() as patch:
        other = one._replace(setup=one.setup._replace(dataset=one.setup.dataset._replace(name="x")))
        patch.setattr(equivariance, "open_finished", lambda f, _: other if f == "b" else one)
        assert "trained on digits and x" in fails(run="a", compare="b")
        patch.setattr(equivariance, "PROGRAMS", ("affnist",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(equivariance, "PROGRAMS", ("affnist",))
        assert "is a run of mnist, not of affnist" in fails(run=str(tiny_run))


# Pictures


def test_pictures(tmp_path):
    x = np.linspace(-3, 3, 13)
    changes = x[:, None] * np.array([0.1, -2, 0, 1, 0.5])
    paths = {name: (x, changes) for name in feature_paths.MAX_AMOUNTS}
    figure = _pose_paths_figure({"one": paths, "another": paths}, "title")
    assert len(figure.axes) == 11
    coloured = [line for line in figure.axes[1].lines if line.get_linewidth() > 1]
    np.testing.assert_array_equal(coloured[-1].get_ydata(), changes[:, 1])  # on top
    bars = {"one": {"rotation": 0.5, "thickness": -3.0}, "two": {"rotation": 1.0, "thickness": 0.2}}
    axes = _probes_figure(bars, "title").axes[1]
    assert [bar.get_height() for bar in axes.patches] == [0.5, 0, 1, 0.2]
    assert [t.get_text() for t in axes.texts] == ["0.50", "-3.00", "1.00", "0.20"]
    plots.plot_pose_paths(tmp_path / "paths.pdf", {"one": paths})
    assert (tmp_path / "paths.pdf").read_bytes()[:4] == b"%PDF"
