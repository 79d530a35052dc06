"""Confusion of classes and calibration, against loops over examples."""

import csv
import io

import jax.numpy as jnp
import numpy as np
import pytest

from capsjax.objectives import prediction_metrics
from experiments.plots.confusion import _confusion_figure, plot_confusion
from experiments.tasks import confusion

RNG = np.random.default_rng(0)
LABELS, PREDICTIONS = RNG.integers(0, 3, 200), RNG.integers(0, 4, 200)
CORRECT = LABELS == PREDICTIONS
NAMES = ("a", "b, c", "d", "nothing")
MATRIX = np.array(
    [[np.sum((LABELS == i) & (PREDICTIONS == j)) for j in range(4)] for i in range(4)]
)


def test_confusion_matrix_counts_pairs():
    got = confusion.confusion_matrix(LABELS, PREDICTIONS, 4)
    np.testing.assert_array_equal(got, MATRIX)
    assert got.sum() == 200 and not got[3].any()
    rows = list(csv.reader(io.StringIO(confusion.to_csv(got, NAMES))))
    assert rows[0] == ["label", *NAMES] and rows[2][0] == "b, c"
    np.testing.assert_array_equal(np.array([row[1:] for row in rows[1:]], int), MATRIX)


def test_calibration_error_is_that_of_a_loop_over_bins():
    confidence = np.append(RNG.uniform(size=197), [0.0, 1.0, 1 / 15])
    want = 0.0
    for b in range(15):
        low, high = b / 15, (b + 1) / 15
        inside = (low < confidence) & (confidence <= high) | ((b == 0) & (confidence == 0))
        if inside.any():
            want += inside.mean() * abs(CORRECT[inside].mean() - confidence[inside].mean())
    got = confusion.calibration_error(confidence, CORRECT)
    assert got == pytest.approx(want, abs=1e-12)
    assert confusion.calibration_error(np.ones(4), np.ones(4, bool)) == 0
    assert confusion.calibration_error(np.full(4, 0.75), np.array([1, 1, 1, 0], bool)) == 0


def test_fields_and_lines():
    values = {"prediction": PREDICTIONS, "confidence": np.full(200, 0.5), "accuracy": 1.0 * CORRECT}
    found = confusion.summary_fields(LABELS, values, NAMES)
    want = {name: 100 * np.mean(~CORRECT[LABELS == n]) for n, name in enumerate(NAMES[:3])}
    errors = found["test_error_by_class"]
    assert errors.pop("nothing") is None
    assert errors == pytest.approx(want, abs=1e-4)
    assert found["calibration_error"] == pytest.approx(abs(CORRECT.mean() - 0.5), abs=1e-4)
    first, second = confusion.report(found, most=1)
    worst = max(want, key=want.get)
    assert first == f"test error by class: {worst} {want[worst]:.2f}%"
    assert second.endswith(f"{found['calibration_error']:.4f}")
    assert confusion.summary_fields(LABELS, {"accuracy": CORRECT}, NAMES) == {}
    assert confusion.report({}) == []


@pytest.mark.parametrize("logit", [False, True])
def test_prediction_and_confidence(logit):
    scores = RNG.uniform(0.01, 0.99, (5, 3)).astype(np.float32)
    got = prediction_metrics(jnp.asarray(scores), logit)
    shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True) if logit else scores
    np.testing.assert_array_equal(got["prediction"], scores.argmax(1))
    np.testing.assert_allclose(got["confidence"], shares.max(1), rtol=1e-6)


def test_figure(tmp_path):
    figure = _confusion_figure(MATRIX, NAMES, "A title")
    axes = figure.axes[1]
    wrong = MATRIX * (1 - np.eye(4, dtype=int))
    np.testing.assert_array_equal(axes.images[0].get_array(), wrong)
    written = {tuple(map(int, text.get_position())): int(text.get_text()) for text in axes.texts}
    assert written == {(j, i): MATRIX[i, j] for i in range(4) for j in range(4) if MATRIX[i, j]}
    assert [text.get_text() for text in axes.get_yticklabels()] == list(NAMES)
    assert axes.get_xlabel() == "prediction (colour: errors)" and axes.get_ylabel() == "label"
    plot_confusion(tmp_path / "dollars.png", MATRIX, (r"$\w$", *NAMES[1:]))  # no formula
    assert (tmp_path / "dollars.png").stat().st_size > 1000
    many = tuple(f"class number {n} of many" for n in range(120))
    plot_confusion(tmp_path / "a.png", np.eye(120, dtype=int), many)
    assert (tmp_path / "a.png").stat().st_size > 1000
