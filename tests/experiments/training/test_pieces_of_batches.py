"""``--microbatch``: on devices, for runs together and ensembles, and what auto picks."""

import dataclasses
import re

import jax
import numpy as np
import optax
import pytest
from helpers import QUICK, prepare_run, train
from npz_files import arrays, short

from experiments.config import Config, UserError
from experiments.config.flags import parse_flags
from experiments.data import batching, datasets
from experiments.tasks import figures
from experiments.training import chunks, pieces, vmapped_loop
from experiments.training.setup import initial_state, training_inputs


def setup(**changes):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 18, 18, 1), np.uint8)
    labels = rng.integers(0, 10, 24, np.int32)
    held = images[:0], labels[:0], images[:8], labels[:8]
    dataset = datasets.Dataset("noise", "noise", images, labels, *held, tuple("0123456789"))
    usual = {"dataset": "noise", "preset": "tiny", "batch_size": 8, "cache_dir": "none"}
    return prepare_run(Config(**usual | {"num_devices": 1} | changes), dataset)


def gradients(made):
    """Returns what one step of gradient descent with rate 1 subtracts, and the metrics."""
    made = made._replace(optimizer=optax.sgd(1.0))
    state = initial_state(made)
    before = jax.device_get(state.params)
    source, key = training_inputs(made)
    order = batching.epoch_orders(key, 0, len(made.dataset.train_labels))
    after, sums = chunks.make_chunk(made)(state, source, order, key, 1)
    difference = jax.tree.map(np.subtract, before, jax.device_get(after.params))
    return difference, {name: float(value) for name, value in sums.items()}


def assert_same(got, want):
    (got, sums), (want, want_sums) = got, want
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        # Differences of parameters lose digits of the gradient: 2^-24 of a weight near 0.3.
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max() + 4e-8)
    assert sums == pytest.approx(want_sums, rel=1e-5)


@pytest.fixture(scope="module")
def whole():
    return gradients(setup())


@pytest.mark.parametrize(
    "parallel, devices",
    [pytest.param("jit", 1, marks=pytest.mark.slow), ("jit", 2), ("shard_map", 2), ("pmap", 2)],
)
def test_pieces_on_devices_take_the_step_of_the_whole_batch(parallel, devices, whole):
    made = setup(parallel=parallel, num_devices=devices, microbatch=2)
    assert pieces.number(made.config) == 4
    assert_same(gradients(made), whole)


@pytest.mark.parametrize("how", [pytest.param("one by one", marks=pytest.mark.slow), "vmap"])
def test_runs_together(how, whole, monkeypatch):
    monkeypatch.setattr(vmapped_loop, "ONE_BY_ONE", ("cpu",) if how == "one by one" else ())
    monkeypatch.setattr(vmapped_loop, "make_optimizer", lambda config, steps: optax.sgd(1.0))
    made = setup(microbatch=4)._replace(optimizer=optax.sgd(1.0))
    configs = [made.config, dataclasses.replace(made.config, seed=1)]
    numbers, state, *rest = vmapped_loop.inputs(made, configs)
    before = jax.device_get(state.params)
    after, sums = vmapped_loop.make_chunk(made)(numbers, state, *rest)
    first = jax.tree.map(lambda a, b: a[0] - b[0], before, jax.device_get(after.params))
    assert_same((first, {name: float(value[0]) for name, value in sums.items()}), whole)


@pytest.mark.slow
def test_ensembles(stored, tmp_path):
    path = stored(arrays((28, 28), 10))
    found = [
        gradients(prepare_run(short("cifar10", path, tmp_path, ensemble=2, microbatch=size)))
        for size in (0, 2)
    ]
    assert_same(*found[::-1])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"microbatch": 3}, "--microbatch=3: --batch_size=16 can't be cut into pieces of 3"),
        ({"microbatch": 32}, "--microbatch=32: .* pieces of 32"),
        (
            {"microbatch": 2, "num_devices": 4},
            "pieces of 2 and divided among 4 devices",
        ),
        ({"microbatch": 8, "preset": "efficient"}, "--microbatch=8: batch normalization needs"),
        ({"microbatch": "auto", "preset": "efficient"}, "--microbatch=auto: batch normalization"),
    ],
)
def test_what_is_refused(changes, message, tmp_path, capsys):
    with pytest.raises(UserError, match=message) as error:
        train(dataclasses.replace(QUICK, workdir=str(tmp_path / "run"), **changes))
    assert "\n" not in str(error.value) and capsys.readouterr() == ("", "")
    assert not (tmp_path / "run").exists()


def test_auto_picks_the_largest_piece_that_memory_holds(monkeypatch, capsys):
    made = setup(microbatch="auto", num_devices=2)
    tried = []

    def step_bytes(setup, _):
        tried.append(setup.config.microbatch)
        return 100 * setup.config.microbatch

    monkeypatch.setattr(pieces, "step_bytes", step_bytes)
    for free, size, tries in ((10_000, 8, [8]), (501, 4, [8, 4]), (10, 2, [8, 4, 2])):
        monkeypatch.setattr(pieces, "free_bytes", lambda _, free=free: free)
        tried.clear()
        found = pieces.choose(made, chunks.chunk_body)
        assert found.config.microbatch == size and tried == tries
        assert re.match(f"pieces of {size} images: a step needs", capsys.readouterr().err)
    assert pieces.choose(setup(microbatch=2), chunks.chunk_body).config.microbatch == 2


@pytest.mark.slow
def test_smaller_pieces_need_less_memory():
    setups = [setup(microbatch=size, batch_size=64) for size in (0, 8)]
    needed = [pieces.step_bytes(one, chunks.chunk_body) for one in setups]
    assert needed[1] < 0.6 * needed[0]


@pytest.mark.slow
def test_a_run_is_the_same_run_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "of_finished_run", lambda *_: [])
    config = dataclasses.replace(QUICK, workdir=str(tmp_path / "run"), steps=1)
    train(config)
    train(dataclasses.replace(config, steps=2, microbatch="auto"))  # continues it
    assert (tmp_path / "run" / "summary.json").exists()


def test_the_flag_is_a_number_or_auto_and_makes_no_other_run():
    assert Config().identity() == Config(microbatch=4).identity()
    values = [parse_flags(Config(), given).microbatch for given in ([], ["--microbatch=auto"])]
    assert values == [0, "auto"]
    assert parse_flags(Config(), ["--microbatch=64"]).microbatch == 64
    for wrong in ("-1", "1.5", "half", ""):
        with pytest.raises(Exception, match="microbatch.*non-negative integer or auto"):
            parse_flags(Config(), [f"--microbatch={wrong}"])
