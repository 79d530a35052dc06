"""What would not fit is refused before anything is allocated, with what it needs."""

import dataclasses
import types

import pytest
from helpers import TINY, parse_mnist, prepare_run

from experiments.config import UserError
from experiments.training import memory


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"primary_types": 1_000_000_000}, "parameters needs .* --primary_types or smaller"),
        (
            {"batch_size": 1_000_000_000},
            "a batch of 1,000,000,000 images .* --batch_size, or --microbatch, needs",
        ),
        ({"log_every": 1_000_000_000}, "--log_every=1000000000 steps needs .* log more often"),
        ({"max_shift": 1_000_000_000}, "--max_shift=1000000000: the images have 28x28"),
        ({"workdir": "gs://bucket/run"}, "not supported"),
    ],
)
def test_beyond_memory(changes, said):
    with pytest.raises(UserError, match=said):
        prepare_run(dataclasses.replace(TINY, **changes))


def test_the_need_is_that_of_parameters_gradients_and_moments(monkeypatch):
    found = []
    monkeypatch.setattr(
        memory, "check_memory", lambda need, what, *rest: found.append((need, what))
    )
    setup = prepare_run(TINY)
    state, batch, orders = (need for need, _ in found)
    assert state == 16 * setup.parameters and f"{setup.parameters:,} parameters" in found[0][1]
    first = setup.model_config.windows[0]
    side = (28 - first.kernel) // first.stride + 1
    assert batch - state == 4 * setup.config.batch_size * (28 * 28 + side**2)
    assert orders == 4 * len(setup.dataset.train_labels)  # one epoch
    found.clear()
    device = types.SimpleNamespace(platform="cpu", memory_stats=lambda: None)
    args = setup.config, setup.dataset, setup.pipeline.shape
    memory.check_fits(*args, [device] * 64, setup.model_config, 8_215_568)
    # As the default network on 64 devices, which is killed for memory on 24 GB.
    assert found[0][0] > 24e9


@pytest.mark.parametrize("count", [257, 100_000_000])
def test_too_many_simulated_devices(count):
    with pytest.raises(UserError, match=f"--num_devices={count}: at most 256"):
        prepare_run(dataclasses.replace(TINY, num_devices=count))


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
@pytest.mark.parametrize("name", ["learning_rate", "decay_rate", "primary_scale", "margin_weight"])
def test_numbers_that_are_not_finite_are_no_flags(name, value):
    with pytest.raises(Exception, match=name):
        parse_mnist(f"--{name}={value}")


@pytest.mark.parametrize("name", ["steps", "epochs", "batch_size", "class_pose", "decay_steps"])
def test_integers_of_more_than_32_bits_are_no_flags(name):
    assert getattr(parse_mnist(f"--{name}=2147483647"), name) == 2**31 - 1
    for value in (2**31, 10**20):
        with pytest.raises(Exception, match="more than 2,147,483,647"):
            parse_mnist(f"--{name}={value}")
    assert parse_mnist(f"--seed={2**32 - 1}").seed == 2**32 - 1
