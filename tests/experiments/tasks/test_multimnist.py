"""The task multimnist: its batches, losses and measures."""

import dataclasses
import functools
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from helpers import load_digits, train

from capsjax import Prediction, functional
from experiments import multimnist
from experiments.config import UserError, network_config, resolve
from experiments.data import batching
from experiments.data.digit_pairs import Pair
from experiments.tasks import multimnist as multimnist_task
from experiments.tasks.multimnist import pair_pipeline

TRAINING_SUM = "f3858723b1a97c06"


def checksum(*arrays):
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()


def training_batch(seed, step, part=(0, 1)):
    config = dataclasses.replace(multimnist.PROGRAM.defaults, seed=seed)
    made = pair_pipeline(config, load_digits())
    key = jax.random.fold_in(jax.random.key(seed), 1)
    order = batching.epoch_orders(key, 0, len(load_digits().train_labels))
    batch = functools.partial(batching.make_batch, made.example, batch_size=16, part=part)
    return jax.jit(batch)(made.source, order, key, step)


def test_training_pairs_are_a_function_of_seed_and_step():
    first = training_batch(0, 3)
    assert checksum(first.images, *first.labels)[:16] == TRAINING_SUM
    again = training_batch(0, 3)
    np.testing.assert_array_equal(first.images, again.images)
    for seed, step in ((0, 4), (1, 3)):
        assert (np.asarray(training_batch(seed, step).images) != first.images).any()
    halves = [training_batch(0, 3, (which, 2)) for which in (0, 1)]
    np.testing.assert_array_equal(first.images, np.concatenate([h.images for h in halves]))
    np.testing.assert_array_equal(
        first.labels.digits, np.concatenate([h.labels.digits for h in halves])
    )


def test_input_is_the_sum_clipped_at_1():
    batch = training_batch(0, 0)
    images, (labels, single) = batch.images, batch.labels
    assert images.shape == (16, 36, 36, 1) and single.shape == (16, 2, 36, 36, 1)
    exact = np.minimum(np.float64(single).sum(1), 1)
    np.testing.assert_allclose(images, exact, atol=1e-6)
    assert (np.float64(single).sum(1) > 1.1).any(), "nothing was cut off"
    assert (labels[:, 0] != labels[:, 1]).all()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"train_labels": np.zeros(1365, np.int32)}, "pairs need train images of two classes"),
        ({"test_labels": np.full(360, 7, np.int32)}, "need test images of two classes, .* of one$"),
        ({"train_images": np.zeros((1365, 28, 28, 3), np.uint8)}, "grey images, not of images"),
    ],
)
def test_data_without_pairs_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        pair_pipeline(multimnist.PROGRAM.defaults, load_digits()._replace(**changes))


def test_empty_validation_split_gives_no_pairs():
    empty = load_digits()._replace(
        validation_images=load_digits().validation_images[:0],
        validation_labels=load_digits().validation_labels[:0],
    )
    images, labels = pair_pipeline(multimnist.PROGRAM.defaults, empty).held_out("validation")
    assert images.shape == (0, 2, 36, 36, 1) and labels.shape == (0, 2)


@pytest.mark.parametrize(
    "model, changes, count",
    [
        ("capsnet", {}, 11_361_968 - 160),
        ("capsnet", {"routing_bias": True}, 11_361_968),
        ("cnn", {}, 24_563_978),
    ],
)
def test_published_numbers_of_parameters(model, changes, count):
    config = resolve(
        dataclasses.replace(multimnist.PROGRAM.defaults, model=model, **changes), "mnist"
    )
    network = network_config(config, (36, 36, 1), 10)
    shapes = jax.eval_shape(functional.create_model(network).init, jax.random.key(0))
    assert functional.count_parameters(shapes) == count


PAIRS = dataclasses.replace(
    multimnist.PROGRAM.defaults,
    dataset="digits",
    preset="tiny",
    steps=2,
    batch_size=16,
    num_devices=1,
    test_pairs=40,
    cache_dir="none",
    accelerator="cpu",
)


class Fake:
    """A network whose scores, poses and reconstructions are its parameters."""

    def __init__(self, decoder):
        self.decoder = decoder

    def apply(self, params, images, *rest, method="__call__"):
        if method == "decode":
            (masks,) = rest
            return jnp.einsum("bjd,bj->bd", images, masks)[:, :, None, None]
        scores = jnp.broadcast_to(params["scores"], (images.shape[0], 4))
        pose = jnp.broadcast_to(params["pose"], (images.shape[0], 4, 6))
        return Prediction(scores, pose) if method == "__call__" else Capsules(scores, pose)


@dataclasses.dataclass
class Capsules:
    activation: jax.Array
    pose: jax.Array


SCORES = np.array([0.3, 0.85, 0.15, 0.7])
LABELS = np.array([[1, 3], [3, 1], [1, 2], [0, 2]], np.int32)


def alone(loss, labels, scores=SCORES):
    """Returns the sum of the losses of each digit among the classes that are not in the image."""
    total = 0.0
    for label, other in (labels, labels[::-1]):
        kept = [j for j in range(4) if j != other]
        total += loss(scores[kept], kept.index(label))
    return total


def spread(scores, label, margin=0.9):
    return sum(
        max(0, margin - (scores[label] - a)) ** 2 for j, a in enumerate(scores) if j != label
    )


WANTED = {
    "dynamic": (
        "margin",
        lambda y: sum(
            max(0, 0.9 - a) ** 2 if j in y else 0.5 * max(0, a - 0.1) ** 2
            for j, a in enumerate(SCORES)
        ),
    ),
    "em": ("spread", lambda y: alone(spread, y)),
    "self": ("cross_entropy", lambda y: alone(lambda a, t: -np.log(a[t] / a.sum()), y)),
    "heinsen": (
        "cross_entropy",
        lambda y: alone(lambda a, t: -np.log(np.exp(a[t]) / np.exp(a).sum()), y),
    ),
    "cnn": (
        "cross_entropy",
        lambda y: sum(np.log1p(np.exp(-a if j in y else a)) for j, a in enumerate(SCORES)),
    ),
}


def made(monkeypatch, routing, **changes):
    given = {"model": "cnn"} if routing == "cnn" else {"routing": routing}
    config = resolve(dataclasses.replace(PAIRS, **given, **changes), "digits")
    network = network_config(config, (36, 36, 1), 4)
    monkeypatch.setattr(functional, "create_model", lambda config: Fake(config))
    return config, multimnist_task.pair_objective(config, network)


@pytest.mark.parametrize("routing", WANTED)
@pytest.mark.parametrize(
    "reconstruction, given, factor", [(True, 0.25, 0.25), (False, "official", 1 / 8)]
)
def test_losses(routing, reconstruction, given, factor, monkeypatch):
    rng = np.random.default_rng(0)
    weight = 0.3
    config, objective = made(
        monkeypatch,
        routing,
        reconstruction=reconstruction,
        margin_weight=given,
        reconstruction_weight=weight,
    )
    pose = rng.uniform(size=(4, 6)).astype(np.float32)
    pictures = rng.uniform(size=(4, 2, 6, 1, 1)).astype(np.float32)
    params = {"scores": SCORES.astype(np.float32), "pose": pose}
    images = np.zeros((4, 36, 36, 1), np.float32)
    losses, metrics = jax.jit(objective.loss)(params, images, Pair(LABELS, pictures))
    name, score_loss = WANTED[routing]
    exact = np.array([score_loss(y.tolist()) for y in LABELS])
    np.testing.assert_allclose(metrics[f"{name}_loss"], exact, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(metrics["accuracy"], [1, 1, 0, 0])
    np.testing.assert_array_equal(metrics["digits"], [1, 1, 0.5, 0])
    np.testing.assert_array_equal(metrics["either"], [1, 1, 1, 0])
    want = exact * (1 if routing == "cnn" else factor)
    if reconstruction and routing != "cnn":
        error = sum(np.square(pose[LABELS[:, k]] - pictures[:, k, :, 0, 0]).sum(1) for k in (0, 1))
        np.testing.assert_allclose(metrics["reconstruction_loss"], error, rtol=1e-5)
        want = want + weight * error
    else:
        assert "reconstruction_loss" not in metrics
    np.testing.assert_allclose(losses, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(metrics["loss"], losses)
    _, measured = jax.jit(objective.measure)(params, images, Pair(LABELS, pictures))
    extra = {"single_pixels", "single_right", "shared_pixels", "shared_right", "squared_error"}
    drawn = extra if reconstruction and routing != "cnn" else set()
    found = {"found_first", "found_second"}
    assert measured.keys() == metrics.keys() | {"overlap"} | found | drawn
    each = [measured["found_first"], measured["found_second"]]
    np.testing.assert_array_equal(np.sum(each, axis=0), 2 * metrics["digits"])


def test_the_margin_of_the_spread_loss_grows(monkeypatch):
    _, objective = made(monkeypatch, "em", reconstruction=False)
    params = {"scores": SCORES.astype(np.float32), "pose": np.zeros((4, 6), np.float32)}
    images, pair = np.zeros((1, 36, 36, 1), np.float32), Pair(LABELS[:1], np.zeros((1, 2, 6, 1, 1)))
    got = objective.loss(params, images, pair, None, 0.5)[0][0]
    exact = alone(functools.partial(spread, margin=0.55), [1, 3])
    assert float(got) == pytest.approx(exact, rel=1e-5)


def test_margin_loss_with_two_classes_equals_reference():
    want = reference.margin_loss(SCORES, np.array([0, 1, 0, 1]))
    assert WANTED["dynamic"][1]([1, 3]) == pytest.approx(float(want))


def test_margin_loss_of_logits_is_refused(tmp_path):
    workdir = str(tmp_path / "x")
    config = dataclasses.replace(PAIRS, routing="heinsen", loss="margin", workdir=workdir)
    with pytest.raises(UserError, match="--loss=margin: the scores of heinsen .*cross_entropy"):
        train(config)
    assert not (tmp_path / "x").exists()


def test_segmentation_against_loops():
    rng = np.random.default_rng(1)
    drawn, single = (rng.uniform(size=(2, 8, 9, 1)).astype(np.float32) for _ in range(2))
    got = jax.jit(multimnist_task.segmentation)(drawn, single)
    want = dict.fromkeys(("single_pixels", "single_right", "shared_pixels", "shared_right"), 0)
    for y in range(8):
        for x in range(9):
            ink = [single[k, y, x, 0] > 0.5 for k in (0, 1)]
            shown = [drawn[k, y, x, 0] for k in (0, 1)]
            if all(ink):
                want["shared_pixels"] += 1
                want["shared_right"] += min(shown) > 0.5
            elif any(ink):
                want["single_pixels"] += 1
                want["single_right"] += shown.index(max(shown)) == ink.index(True)
    assert min(want.values()) > 0
    for name, value in want.items():
        assert float(got[name]) == value
    exact = np.mean(np.square(np.float64(drawn) - single))
    assert float(got["squared_error"]) == pytest.approx(exact)
    perfect = multimnist_task.segmentation(jnp.asarray(single), jnp.asarray(single))
    assert perfect["single_right"] == perfect["single_pixels"]
    assert perfect["shared_right"] == perfect["shared_pixels"]
