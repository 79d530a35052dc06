"""Images with sets of labels: the loss, the metrics, and a run from a table to a report."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from helpers import QUICK, TINY, prepare_run, read_json, train
from PIL import Image

from experiments import predict
from experiments.config import UserError
from experiments.data.datasets import Dataset
from experiments.tasks import label_sets
from experiments.training.setup import initial_state

RNG = np.random.default_rng(0)
NAMES = ("left", "right", "both's")


def made_up(count=24):
    labels = np.array(list(itertools.product((0, 1), repeat=3)) * (count // 8), np.uint8)
    images = RNG.integers(0, 50, (count, 28, 28, 1), np.uint8)
    for image, label in zip(images, labels, strict=True):
        for k in range(3):
            image[4:24, 9 * k : 9 * k + 8] += 200 * label[k]
    return images, labels


def test_average_precision_is_scikit_learns():
    for ties in (2, 5, 1000):
        for _ in range(20):
            targets = RNG.integers(0, 2, 30)
            scores = RNG.integers(0, ties, 30) / ties
            targets[0] = 1
            want = sklearn.metrics.average_precision_score(targets, scores)
            np.testing.assert_allclose(label_sets.average_precision(targets, scores), want)
    assert label_sets.average_precision(np.zeros(3), np.ones(3)) is None


@pytest.mark.parametrize("model", ["capsnet", "cnn"])
def test_loss_and_metrics_are_those_of_loops(model):
    images, labels = made_up(8)
    dataset = Dataset("made up", "", *(images, labels) * 3, NAMES)
    reconstruction = model == "capsnet"
    config = dataclasses.replace(QUICK, model=model, reconstruction=reconstruction)
    setup = prepare_run(config, dataset)
    variables = initial_state(setup).variables
    x, key = jnp.float32(images) / 255, jax.random.key(0)
    out = jax.jit(setup.model.apply)(variables, x)
    total, metrics = jax.jit(setup.measure)(variables, x, jnp.asarray(labels))
    scores = np.float64(out.scores)
    if model == "cnn":
        scores = 1 / (1 + np.exp(-scores))
        each = -np.where(labels, np.log(scores), np.log(1 - scores))
        want = each.sum(axis=1)
    else:
        present = np.maximum(0, 0.9 - scores) ** 2
        absent = 0.5 * np.maximum(0, scores - 0.1) ** 2
        want = np.where(labels, present, absent).sum(axis=1)
        np.testing.assert_allclose(metrics["margin_loss"], want, rtol=1e-4)
        drawn = setup.model.apply(variables, out.pose, jnp.float32(labels), method="decode")
        error = np.square(np.float64(drawn) - np.float64(x)).sum(axis=(1, 2, 3))
        want = want + 0.0005 * error
    np.testing.assert_allclose(total, want, rtol=1e-4)
    right = (scores >= 0.5) == labels
    np.testing.assert_array_equal(metrics["accuracy"], right.all(axis=1))
    np.testing.assert_allclose(metrics["label_accuracy"], right.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(label_sets.scores_of(metrics, 3), scores, rtol=1e-4)
    assert "score_0" not in jax.eval_shape(setup.loss, variables, x, labels, key)[1]


@pytest.mark.slow
def test_a_table_of_sets_trains_reports_and_predicts(tmp_path, capsys):
    rows = ["path,labels"]
    images, labels = made_up(32)
    for k, (image, label) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(image[..., 0]).save(tmp_path / f"{k}.png")
        rows.append(f"{k}.png,{';'.join(n for n, there in zip(NAMES, label) if there)}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    config = dataclasses.replace(
        TINY,
        dataset=str(tmp_path / "table.csv"),
        batch_size=8,
        validation_fraction=0.2,
        workdir=str(tmp_path / "run"),
    )
    train(config)
    summary = read_json(tmp_path / "run" / "summary.json")
    assert set(summary["labels"]) == set(NAMES)
    assert abs(summary["exact_match"] - (100 - summary["test_error"])) < 1e-3
    assert 0 < summary["mean_average_precision"] <= 1
    page = (tmp_path / "run" / "report.html").read_text()
    assert "both&#x27;s" in page and "average precision" in page
    assert (tmp_path / "run" / "figures" / "contact_sheet.png").exists()
    capsys.readouterr()
    flags = predict.Flags(run=str(tmp_path / "run"), json=True)
    predict.main(flags, str(tmp_path / "7.png"))
    (found,) = read_json(tmp_path / "run" / "predictions.json")
    present = [name for name, score in found["scores"].items() if score >= 0.5]
    assert sorted(found["classes"]) == sorted(present) and set(found["scores"]) == set(NAMES)


def test_other_losses_are_refused():
    images, labels = made_up(8)
    dataset = Dataset("made up", "", *(images, labels) * 3, NAMES)
    with pytest.raises(UserError, match="--loss=spread needs images of one class"):
        prepare_run(dataclasses.replace(QUICK, loss="spread"), dataset)
    for flags in ({"model": "cnn"}, {"preset": "hvc"}):
        with pytest.raises(UserError, match="--label_smoothing needs images of one class each"):
            prepare_run(dataclasses.replace(QUICK, label_smoothing=0.1, **flags), dataset)
    for flags in ({"routing": "inverted"}, {"preset": "vb"}):
        with pytest.raises(UserError, match="has logits as scores"):
            prepare_run(dataclasses.replace(QUICK, loss="margin", **flags), dataset)
    with pytest.raises(UserError, match="pairs are made of images of one class"):
        prepare_run(dataclasses.replace(QUICK, program="multimnist"), dataset)
