"""Accelerators, and the three ways to divide a batch among four simulated devices."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from helpers import prepare_run

from capsjax.models import PRESETS
from experiments.config import Config, UserError
from experiments.data import augment, batching, datasets
from experiments.training import chunks, memory, shards
from experiments.training import evaluate as evaluate_module
from experiments.training.devices import find_devices, parallelize, replicate
from experiments.training.evaluate import make_evaluate
from experiments.training.setup import initial_state, training_inputs


@pytest.mark.parametrize("accelerator", ["gpu", "tpu"])
def test_an_absent_accelerator_is_an_error(accelerator):
    with pytest.raises(UserError, match=f"--accelerator={accelerator}"):
        find_devices(accelerator)


def test_too_many_devices_is_an_error():
    with pytest.raises(UserError, match="--num_devices=9: only 4 cpu"):
        find_devices("auto", 9)
    assert len(find_devices("cpu", 3)) == 3


def test_unknown_strategy():
    with pytest.raises(ValueError, match="pmap"):
        parallelize(lambda **_: None, "magic", jax.devices())


def setup(parallel, num_devices, **changes):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 18, 18, 1), np.uint8)
    labels = rng.integers(0, 10, 24, np.int32)
    arrays = images, labels, images[:0], labels[:0], images[:10], labels[:10]
    dataset = datasets.Dataset("noise", "noise", *arrays, tuple("0123456789"))
    usual = {"dataset": "noise", "preset": "tiny", "batch_size": 8, "cache_dir": "none"}
    config = Config(parallel=parallel, num_devices=num_devices, **usual | changes)
    return prepare_run(config, dataset)


def leaves(tree):
    """Returns pairs of the path and the value of each leaf."""
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in pairs]


def gradients(made):
    """Returns what one step of gradient descent with rate 1 subtracts from the parameters."""
    made = made._replace(optimizer=optax.sgd(1.0))
    state = initial_state(made)
    before = jax.device_get(state.params)
    source, key = training_inputs(made)
    order = batching.epoch_orders(key, 0, 24)
    after, sums = chunks.make_chunk(made)(state, source, order, key, 1)
    assert int(after.step) == 1
    whole = {path: leaf.is_fully_replicated for path, leaf in leaves(after.params)}
    assert whole.pop("['classes']['kernel']") == (made.config.capsule_shards == 1)
    assert all(whole.values())
    difference = jax.tree.map(lambda a, b: a - b, before, jax.device_get(after.params))
    return difference, {name: float(value) for name, value in sums.items()}


@pytest.fixture(scope="module")
def one_device():
    return setup("jit", 1)


@pytest.fixture(scope="module")
def one_device_gradients(one_device):
    return gradients(one_device)


FOUR_DEVICES = [{"parallel": name} for name in ("jit", "shard_map", "pmap")]
FOUR_DEVICES += [{"capsule_shards": 2}, {"capsule_shards": 4, "shard_optimizer": True}]


@pytest.mark.parametrize("changes", FOUR_DEVICES, ids=str)
def test_four_devices_take_the_step_of_one(changes, one_device_gradients):
    want, want_sums = one_device_gradients
    got, sums = gradients(setup(**{"parallel": "jit", "num_devices": 4} | changes))
    assert_same_step(got, want)
    assert sums == pytest.approx(want_sums, rel=1e-5)


def assert_same_step(got, want):
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(want), jax.tree.leaves(got), strict=True
    ):
        scale = np.abs(a).max()
        assert scale > 0, path
        # Differences of parameters lose digits of the gradient: 2^-24 of a weight near 0.3.
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * scale + 4e-8, err_msg=str(path))


@pytest.mark.slow
def test_the_optimizer_is_divided_among_devices_and_its_moments_are_those_of_one(one_device):
    states = []
    for made in (one_device, setup("jit", 4, shard_optimizer=True)):
        source, key = training_inputs(made)
        order = batching.epoch_orders(key, 0, 24)
        initial = initial_state(made)
        states.append(chunks.make_chunk(made)(initial, source, order, key, 1)[0])
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(jax.device_get(states[0].opt_state)),
        jax.tree.leaves(jax.device_get(states[1].opt_state)),
        strict=True,
    ):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * np.abs(a).max(), err_msg=str(path))
    leaves = jax.tree.leaves(states[1].opt_state)
    held = [x.addressable_shards[0].data.size for x in leaves]
    # A quarter of all but the smallest arrays is on each device, and the parameters are on all.
    assert sum(held) < 0.26 * sum(x.size for x in leaves)
    assert all(x.is_fully_replicated for x in jax.tree.leaves(states[1].params))


def test_the_compiler_divides_the_optimizer_under_jit_alone():
    with pytest.raises(UserError, match="--shard_optimizer .* --parallel=jit, not shard_map"):
        shards.check(setup("shard_map", 2, shard_optimizer=True))


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"parallel": "shard_map"}, "use --parallel=jit"),
        ({"capsule_shards": 3}, "the number of devices, 4, is no multiple of it"),
        ({"routing_implementation": "naive"}, "use --routing_implementation=auto"),
        ({"routing_schedule": "concurrent"}, "concurrent keep all votes"),
        ({"model": "cnn"}, "applies only to capsule networks"),
        ({"votes": "conv"}, "4 input capsules of 4 types can't be divided by it"),
    ],
    ids=str,
)
def test_capsules_that_cannot_be_divided_are_refused(changes, reason):
    with pytest.raises(UserError, match=reason):
        setup(**{"parallel": "jit", "num_devices": 4, "capsule_shards": 2} | changes)


def test_convolutional_capsule_layers_are_whole_below_divided_ones(monkeypatch):
    deep = dataclasses.replace(
        PRESETS["capsnet_tiny"], primary_kernel=5, capsule_layers=((4, 2, 1),), conv_norm="layer"
    )
    monkeypatch.setitem(PRESETS, "capsnet_tiny", deep)
    want, want_sums = gradients(setup("jit", 1))
    got, sums = gradients(setup("jit", 4, capsule_shards=2))
    assert_same_step(got, want)
    assert sums == pytest.approx(want_sums, rel=1e-5)


def test_each_device_has_the_weights_of_its_own_capsules(one_device):
    start = jax.device_get(initial_state(one_device))
    for zero, parts in ((False, 2), (True, 4)):
        made = setup("jit", 4, capsule_shards=2, shard_optimizer=zero)
        state = initial_state(made)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), start)
        source, key = training_inputs(made)
        order = batching.epoch_orders(key, 0, 24)
        after = chunks.make_chunk(made)(initial_state(made), source, order, key, 1)[0]
        for one in (state, after):
            held = {path: [s.data.size for s in x.addressable_shards] for path, x in leaves(one)}
            size = one.params["classes"]["kernel"].size
            assert held[".params['classes']['kernel']"] == [size // 2] * 4
            for name in ("mu", "nu"):
                assert held[f".opt_state[0].{name}['classes']['kernel']"] == [size // parts] * 4


def test_memory_counts_the_weights_that_a_device_has():
    whole, divided = (
        memory._elsewhere(setup("jit", 4, capsule_shards=n).model_config) for n in (1, 4)
    )
    assert (whole, divided) == (0, 3 * 4 * 10 * 16 * 8 // 4)


def test_a_chunk_of_any_length_equals_single_steps(one_device):
    made = one_device
    chunk = chunks.make_chunk(made)
    source, key = training_inputs(made)
    order = batching.epoch_orders(key, 0, 24)
    together, _ = chunk(initial_state(made), source, order, key, 3)
    state = initial_state(made)
    for _ in range(3):
        state, _ = chunk(state, source, order, key, 1)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(together), jax.device_get(state))


def test_batch_must_divide_among_devices():
    with pytest.raises(UserError, match="--batch_size=8 .* 3 devices"):
        setup("jit", 3)


@pytest.mark.parametrize("batch, batches", [(128, 8), (4, 2)])  # all at once; 3 batches, 2 calls
def test_evaluation_counts_every_example_once_on_any_number_of_devices(
    one_device, batch, batches, monkeypatch
):
    monkeypatch.setattr(evaluate_module, "BATCH", batch)
    monkeypatch.setattr(evaluate_module, "BATCHES", batches)
    d = one_device.dataset
    params = jax.device_get(initial_state(one_device).params)
    scores = jax.jit(one_device.model.apply)(params, augment.to_unit(d.test_images)).scores
    want = np.asarray(scores).argmax(1) == d.test_labels
    losses = one_device.loss(params, augment.to_unit(d.test_images), d.test_labels)[0]
    for made in (one_device, setup("jit", 4)):
        replicated = replicate(params, made.devices)
        values = make_evaluate(made)(replicated, d.test_images, d.test_labels)
        assert {v.shape for v in values.values()} == {(10,)}
        np.testing.assert_array_equal(values["accuracy"] > 0, want)
        np.testing.assert_allclose(values["loss"], losses, rtol=1e-5)


def test_prepare_resolves_the_configuration_and_counts_parameters(one_device):
    assert one_device.config.margin_weight == 1.0
    shapes = jax.eval_shape(one_device.model.init, jax.random.key(0))
    assert one_device.parameters == sum(x.size for x in jax.tree.leaves(shapes))
