"""The training loop."""

import dataclasses

import numpy as np
import pytest
from helpers import QUICK, TINY, metrics_rows, prepare_run, train

from experiments.config import UserError
from experiments.data import batching
from experiments.training import chunks
from experiments.training.setup import initial_state, training_inputs


@pytest.mark.slow
def test_validation_within_epochs_does_not_change_training(tmp_path):
    """Uses epochs of three steps, of which two at a time draw their order together."""
    config = dataclasses.replace(
        QUICK, steps=10, log_every=5, train_examples=48, validation_fraction=0.3
    )
    plain, often = (
        train(dataclasses.replace(config, workdir=str(tmp_path / name), validate_every=steps))
        for name, steps in [("plain", 0), ("often", 4)]
    )

    def validated(name):
        return [row["step"] for row in metrics_rows(tmp_path / name) if "validation_error" in row]

    assert (validated("plain"), validated("often")) == ([6, 10], [4, 8, 10])
    assert plain["test_loss"] == often["test_loss"]
    assert plain["validation_loss"] == often["validation_loss"]


@pytest.mark.parametrize(
    "implementation, steps, batch_size",
    [
        ("stream", 8, 16),
        ("pallas_interpret", 3, 4),
    ],
)
@pytest.mark.slow
def test_implementations_of_routing_give_the_same_losses(implementation, steps, batch_size):
    losses = []
    for name in ("naive", implementation):
        setup = prepare_run(
            dataclasses.replace(TINY, batch_size=batch_size, routing_implementation=name)
        )
        chunk, state = chunks.make_chunk(setup), initial_state(setup)
        source, key = training_inputs(setup)
        order = batching.epoch_orders(key, 0, len(setup.dataset.train_labels))
        losses.append([])
        for _ in range(steps):
            state, sums = chunk(state, source, order, key, 1)
            losses[-1].append(float(sums["loss"]))
    assert losses[0][-1] != losses[0][0]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_non_finite_loss_ends_the_run(tmp_path):
    config = dataclasses.replace(TINY, workdir=str(tmp_path), learning_rate=1e30, steps=30)
    with pytest.raises(UserError, match="the loss is (nan|inf) after step"):
        train(config)
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize(
    "changes, what, kept",
    [
        ({"learning_rate": 1e30}, "the loss of validation images is", 0),
        ({"learning_rate": 1e30, "validation_fraction": 0.0}, "the loss of test images is", 1),
        ({"optimizer": "sgd", "learning_rate": 3e38, "margin_weight": 1e4}, "the weights are", 0),
    ],
    ids=str,
)
def test_a_last_update_that_diverges_ends_the_run(changes, what, kept, tmp_path):
    """The loss of training is that before the update."""
    config = dataclasses.replace(TINY, workdir=str(tmp_path / "run"), steps=1)
    with pytest.raises(UserError, match=f"{what} not finite after .* a smaller"):
        train(dataclasses.replace(config, **changes))
    assert not (tmp_path / "run" / "summary.json").exists()
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == kept
