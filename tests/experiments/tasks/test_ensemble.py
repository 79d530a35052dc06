"""Ensembles: several networks trained as one."""

import jax
import numpy as np
import optax
import pytest
from helpers import prepare_run, train
from npz_files import arrays, short
from tfds_builders import offline  # noqa: F401  (no test here reaches the network)

from capsjax import functional
from experiments.config import UserError
from experiments.data import batching
from experiments.training import chunks
from experiments.training.evaluate import make_evaluate
from experiments.training.setup import initial_state, training_inputs


def members(made):
    """Returns the parameters of each network before and after one step of gradient descent."""
    made = made._replace(optimizer=optax.sgd(1.0))
    state = initial_state(made)
    source, key = training_inputs(made)
    order = batching.epoch_orders(key, 0, len(made.dataset.train_labels))
    before = jax.device_get(state.params)
    after, sums = chunks.make_chunk(made)(state, source, order, key, 1)
    return before, jax.device_get(after.params), jax.device_get(sums)


def test_ensemble_members_train_independently(stored, tmp_path):
    path = stored(arrays((28, 28), 10))
    made = prepare_run(short("cifar10", path, tmp_path, ensemble=3))
    before, after, sums = members(made)
    single = prepare_run(short("cifar10", path, tmp_path))
    losses = []
    for n in range(3):
        start = jax.tree.map(lambda x, n=n: x[n], before)
        alone = single._replace(model=single.model._replace(init=lambda key, start=start: start))
        _, want, alone_sums = members(alone)
        losses.append(alone_sums["loss"])
        for got, exact, first in zip(
            jax.tree.leaves(after), jax.tree.leaves(want), jax.tree.leaves(start), strict=True
        ):
            moved = abs(exact - first).max()
            np.testing.assert_allclose(got[n], exact, rtol=0, atol=1e-4 * moved + 1e-7)
    assert len(set(np.round(losses, 6))) == 3
    assert sums["loss"] == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.slow
def test_ensemble_averages_scores(stored, tmp_path):
    made = prepare_run(short("cifar10", stored(arrays((28, 28), 10)), tmp_path, ensemble=3))
    params = jax.device_get(initial_state(made).params)
    pixels, labels = made.pipeline.held_out("test")
    values = make_evaluate(made)(params, pixels, labels)
    alone = functional.create_model(made.model_config)
    x = jax.vmap(made.pipeline.input)(pixels)
    scores = np.stack(
        [
            np.asarray(jax.jit(alone.apply)(jax.tree.map(lambda p, n=n: p[n], params), x).scores)
            for n in range(3)
        ]
    )
    right = scores.argmax(2) == labels
    np.testing.assert_array_equal(values["accuracy"], scores.mean(0).argmax(1) == labels)
    np.testing.assert_allclose(values["member_accuracy"], right.mean(0), atol=1e-6)


@pytest.mark.parametrize(
    "changes, flag",
    [
        ({"diagnostics": True}, "--diagnostics"),
        ({"reconstruction": True}, "--reconstruction"),
        ({"routing": "frozen"}, "--routing=frozen"),
    ],
)
def test_flags_of_a_single_network_are_refused_for_ensembles(changes, flag, stored, tmp_path):
    config = short("cifar10", stored(arrays((28, 28), 10)), tmp_path, ensemble=2, **changes)
    with pytest.raises(UserError, match=f"{flag} needs a single network, not --ensemble=2"):
        train(config)
    assert not (tmp_path / "run").exists()
