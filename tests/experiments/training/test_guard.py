"""What training says of capsule layers that can't learn."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import QUICK, prepare_run, train
from npz_files import arrays, short

from capsjax import preset
from experiments.mnist import PROGRAM
from experiments.training import guard
from experiments.training.setup import initial_state, prepare, steps_per_epoch


@pytest.fixture(scope="module")
def setup():
    return prepare(PROGRAM, dataclasses.replace(QUICK, cache_dir="none"))


def lines(setup, factor):
    """Returns the warnings for initial transformation matrices that are multiplied."""
    params = initial_state(setup).params
    params["classes"]["kernel"] = factor * params["classes"]["kernel"]
    return guard.warnings(setup, guard.make_measure(setup)(params), "before training")


def test_a_good_start_is_silent(setup):
    assert lines(setup, 1.0) == []


@pytest.mark.parametrize("factor, word", [(30.0, "saturated"), (0.03, "dead")])
def test_a_bad_start_is_said_in_one_line(setup, factor, word):
    (line,) = lines(setup, factor)
    assert line.startswith("before training: the capsules of classes are " + word), line
    assert "; try --" in line or "; try a" in line


def test_short_capsules_whose_squash_is_linear_learn(setup):
    def found(squash):
        config = dataclasses.replace(setup.model_config, squash=squash)
        states = {name: guard.LayerState(0.005, 0.01, 0.5, 1.0) for name in ("primary", "classes")}
        return guard.warnings(setup._replace(model_config=config), states, "before training")

    assert len(found("paper")) == len(found("half")) == 2
    assert not found("exponential") and not found("none")


def test_states_are_those_of_the_layers(setup):
    params = initial_state(setup).params
    states = guard.make_measure(setup)(params)
    assert list(states) == ["primary", "classes"]
    keys = jax.random.split(jax.random.key(0), guard.IMAGES)
    source = setup.pipeline.source
    x = jnp.stack([setup.pipeline.example(k, source, n)[0] for n, k in enumerate(keys)])
    scores = np.asarray(setup.model.apply(params, x).scores)
    state = states["classes"]
    np.testing.assert_allclose(state.mean, scores.mean(), rtol=1e-4)
    np.testing.assert_allclose(state.largest, scores.max(1).mean(), rtol=1e-4)
    p = scores / scores.sum(1, keepdims=True)
    np.testing.assert_allclose(
        state.entropy, -np.sum(p * np.log(p), 1).mean() / np.log(p.shape[1]), rtol=1e-4
    )
    assert state.gradient > 0
    assert set(guard.row(states)) == {
        "layer_activation",
        "layer_largest_activation",
        "layer_entropy",
        "layer_gradient",
    }


def test_chance_is_the_share_of_the_largest_class(setup):
    labels = setup.dataset.train_labels
    share = np.bincount(labels).max() / len(labels)
    (line,) = guard.no_better_than_chance(setup, [{"accuracy": share}], "after 5 steps")
    assert line.startswith(f"after 5 steps: {100 * share:.1f}% of the last training images")
    assert f"the largest class alone is {100 * share:.1f}%;" in line
    assert not guard.no_better_than_chance(setup, [{"accuracy": share + 0.01}], "after 5 steps")


# Bug: the share of the training images counted, also where others were classified or sampled.
@pytest.mark.parametrize("balanced", [{}, {"sampler": "balanced"}, {"class_weights": "balanced"}])
def test_chance_is_that_of_the_images_that_are_classified(setup, balanced):
    train_labels, validation_labels = (
        np.repeat([0, 1, 2], [7, 2, 1]),
        np.repeat([0, 1, 2], [2, 2, 1]),
    )
    data = setup.dataset._replace(train_labels=train_labels, validation_labels=validation_labels)
    setup = setup._replace(dataset=data, config=dataclasses.replace(setup.config, **balanced))
    for name, chance in (("accuracy", 0.7), ("validation_error", 0.4)):
        chance = 1 / 3 if balanced else chance
        for right, heard in ((chance - 0.01, True), (chance, True), (chance + 0.01, False)):
            rows = [{name: right if name == "accuracy" else 100 * (1 - right)}]
            found = guard.no_better_than_chance(setup, rows, "later")
            assert bool(found) == heard, (name, right)
            assert not heard or f" {100 * chance:.1f}%; " in found[0]
            assert not heard or name == "accuracy" or " of 5 validation images are " in found[0]


class Heard:
    """A display that remembers what it is told."""

    def __init__(self):
        self.lines, self.rows = [], []

    def say(self, line):
        self.lines.append(line)

    def measured(self, step, row):
        self.rows.append((step, row))


def test_when_it_looks(setup):
    """Before training and after the first epoch; chance is judged after a whole epoch."""
    config = dataclasses.replace(setup.config, steps=0, epochs=2, validate_every=10, log_every=10)
    setup = setup._replace(config=config)
    epoch = 10 * -(-steps_per_epoch(setup) // 10)
    params = initial_state(setup).params
    params["classes"]["kernel"] *= 30
    inspect, heard = guard.make_inspect(setup), Heard()
    for step in (0, 10, epoch, epoch + 10):
        inspect(step, params, heard, [{"accuracy": 0.0}])
    said = [line.split(":")[1] for line in heard.lines]
    assert said == [" before training", f" after {epoch} steps", f" after {epoch} steps"]
    assert "largest class" in heard.lines[-1] and not heard.rows


# Bug: a run that was interrupted before its first checkpoint wrote its first row once more.
def test_the_state_before_training_is_written_once(setup):
    setup = setup._replace(config=dataclasses.replace(setup.config, diagnostics=True))
    inspect, heard = guard.make_inspect(setup), Heard()
    params = initial_state(setup).params
    inspect(0, params, heard, [])
    inspect(0, params, heard, [row for _, row in heard.rows])
    inspect(5, params, heard, [row for _, row in heard.rows])
    assert [step for step, _ in heard.rows] == [0, 5]


# Bug: the largest activation was taken over the images, where there is an axis of networks.
@pytest.mark.slow
def test_networks_of_an_ensemble_are_looked_at_together(stored, tmp_path):
    setup = prepare_run(short("cifar10", stored(arrays((28, 28), 10)), tmp_path, ensemble=2))
    variables, source = initial_state(setup).variables, setup.pipeline.source
    states = guard.make_measure(setup)(variables)
    keys = jax.random.split(jax.random.key(0), guard.IMAGES)
    x = jnp.stack([setup.pipeline.example(k, source, n)[0] for n, k in enumerate(keys)])
    scores = np.asarray(setup.model.apply(variables, x).scores)
    assert scores.shape == (2, guard.IMAGES, 10)
    np.testing.assert_allclose(states["classes"].largest, scores.max(2).mean(), rtol=1e-4)


# Bug: that both digits are right was compared with the share of one of them.
def test_pairs_of_digits_are_not_compared_with_a_class(tmp_path):
    config = short("multimnist", "digits", tmp_path, validate_every=1, log_every=1)
    setup = prepare_run(dataclasses.replace(config, steps=0, epochs=1))
    inspect, heard = guard.make_inspect(setup), Heard()
    variables, rows = initial_state(setup).variables, [{"accuracy": 0.0}]
    inspect(steps_per_epoch(setup), variables, heard, rows)
    assert guard.no_better_than_chance(setup, rows, "")
    assert not [line for line in heard.lines if "largest class" in line]


def test_diagnostics_show_it(tmp_path):
    train(dataclasses.replace(QUICK, workdir=str(tmp_path), steps=2, diagnostics=True))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    measured = [row for row in rows if "layer_gradient" in row]
    assert [row["step"] for row in measured] == [0, 2]
    assert all(len(row["layer_gradient"]) == 2 for row in measured)


@pytest.mark.parametrize(
    "primary, norm, named", [(0.999, "none", 1), (0.6, "none", 0), (0.999, "image", 0)]
)
def test_saturated_primary_capsules_name_the_cure(primary, norm, named):
    """Where class capsules are saturated and images are not normalized within the network."""
    setup = types.SimpleNamespace(model_config=preset("capsnet_tiny", input_norm=norm))
    states = {
        name: guard.LayerState(mean, mean, 1, 1)
        for name, mean in (("primary", primary), ("classes", 0.95))
    }
    (line,) = guard.warnings(setup, states, "now")
    assert "classes are saturated" in line and line.count("--input_norm=image") == named
