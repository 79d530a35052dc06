"""The lines that a run begins with."""

import dataclasses

import pytest
from helpers import QUICK, prepare_run

from experiments.training.banner import banner


@pytest.mark.parametrize(
    "steps, epochs, batch_size, said",
    [
        (0, 4, 16, "the whole run is 12 steps: an epoch of 50 images has 3 of --batch_size=16"),
        (0, 40, 16, ""),  # 120 steps
        (0, 2, 16, ""),  # few epochs, and not large batches, are the reason
        (5, 4, 16, ""),  # as asked for
    ],
)
def test_a_run_of_few_steps_is_said_unless_it_was_asked_for(steps, epochs, batch_size, said):
    changes = {"steps": steps, "epochs": epochs, "batch_size": batch_size}
    setup = prepare_run(
        dataclasses.replace(QUICK, train_examples=50, validation_fraction=0.05, **changes)
    )
    lines = banner(setup).splitlines()
    assert lines[0].startswith("capsjax mnist | ") and "50 training" in lines[0]
    assert len(lines) == 1 + bool(said)
    assert said in lines[-1]
