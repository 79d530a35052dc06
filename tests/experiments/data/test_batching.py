"""Batches: every example once an epoch, pixels independent of devices, exact shifts."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import augment, batching

KEY = jax.random.key(7)


def shifted(image, dy, dx):
    """Independent reference: out[y, x] = image[y + dy, x + dx], zero outside."""
    height, width, _ = image.shape
    out = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            if 0 <= y + dy < height and 0 <= x + dx < width:
                out[y, x] = image[y + dy, x + dx]
    return out


def test_shift_is_one_of_all_displacements_uniformly():
    image = np.arange(1, 6 * 5 + 1, dtype=np.uint8).reshape(6, 5, 1)
    legal = {
        shifted(image, dy, dx).tobytes(): (dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)
    }
    assert len(legal) == 25
    keys = jax.random.split(KEY, 5000)
    images = np.asarray(jax.vmap(lambda k: augment.random_shift(k, jnp.asarray(image), 2))(keys))
    counts = collections.Counter(legal[i.tobytes()] for i in images)
    assert len(counts) == 25
    # 200 expected each; six standard deviations of the binomial are 83.
    assert all(abs(n - 200) < 83 for n in counts.values())


def test_no_shift_returns_the_image():
    image = jnp.ones((3, 3, 1), jnp.uint8)
    assert augment.random_shift(KEY, image, 0) is image


def test_to_unit_reaches_both_ends():
    unit = augment.to_unit(jnp.array([0, 51, 255], jnp.uint8))
    assert unit.dtype == jnp.float32
    np.testing.assert_allclose(unit, [0, 0.2, 1], rtol=1e-7)


@pytest.mark.parametrize("examples, batch, want", [(60000, 128, 468), (10, 10, 1), (3, 8, 1)])
def test_steps_per_epoch(examples, batch, want):
    assert batching.steps_per_epoch(examples, batch) == want


def batch(*arguments, max_shift=0, **options):
    train, _ = augment.random_shifts(max_shift)

    def example(key, source, row):
        return train(key, source.images[row]), source.labels[row]

    return batching.make_batch(example, *arguments, **options)


def source(n):
    images = jnp.arange(n, dtype=jnp.uint8).reshape(n, 1, 1, 1) * jnp.ones((1, 4, 4, 1), jnp.uint8)
    return batching.ImageSource(images, jnp.arange(n, dtype=jnp.int32))


def test_an_epoch_visits_every_example_once_and_epochs_differ():
    orders = []
    for epoch in range(2):
        order = batching.epoch_orders(KEY, epoch, 12)
        steps = range(epoch * 3, epoch * 3 + 3)
        labels = [batch(source(12), order, KEY, jnp.int32(s), batch_size=4).labels for s in steps]
        orders.append(np.concatenate(labels).tolist())
        assert sorted(orders[-1]) == list(range(12))
    assert orders[0] != orders[1]


def test_a_block_holds_the_orders_of_its_epochs():
    single = [jax.random.permutation(jax.random.fold_in(KEY, n), 12) for n in range(3, 6)]
    block = batching.epoch_orders(KEY, 1, 12, 3)
    np.testing.assert_array_equal(block, single)
    for step in range(9, 18):  # three steps an epoch, and so epochs 3, 4 and 5
        got = batch(source(12), block, KEY, jnp.int32(step), batch_size=4).labels
        want = single[step // 3 - 3][step % 3 * 4 :][:4]
        np.testing.assert_array_equal(got, want)


def test_images_belong_to_their_labels():
    order = batching.epoch_orders(KEY, 0, 12)
    got = batch(source(12), order, KEY, jnp.int32(1), batch_size=4)
    np.testing.assert_array_equal(np.round(got.images[:, 0, 0, 0] * 255), got.labels)


@pytest.mark.parametrize("parts", [2, 4])
def test_the_parts_of_a_batch_make_the_whole(parts):
    order = batching.epoch_orders(KEY, 0, 12)
    arguments = source(12), order, KEY, jnp.int32(2)
    whole = batch(*arguments, batch_size=8, max_shift=2)
    pieces = [batch(*arguments, batch_size=8, max_shift=2, part=(i, parts)) for i in range(parts)]
    np.testing.assert_array_equal(whole.images, np.concatenate([p.images for p in pieces]))
    np.testing.assert_array_equal(whole.labels, np.concatenate([p.labels for p in pieces]))
    keys = {tuple(jax.random.key_data(p.key).tolist()) for p in pieces}
    assert len(keys) == parts


def test_a_batch_larger_than_the_data_repeats_them_evenly():
    order = batching.epoch_orders(KEY, 0, 3)
    got = batch(source(3), order, KEY, jnp.int32(0), batch_size=6)
    assert sorted(got.labels.tolist()) == [0, 0, 1, 1, 2, 2]


def test_augmentation_changes_with_the_step():
    order = jnp.zeros((1, 4), jnp.int32)
    bright = batching.ImageSource(jnp.full((4, 4, 4, 1), 255, jnp.uint8), jnp.zeros(4, jnp.int32))
    first, second = (
        batch(bright, order, KEY, jnp.int32(s), batch_size=4, max_shift=2).images for s in (0, 1)
    )
    assert (np.asarray(first) != np.asarray(second)).any()


@pytest.mark.parametrize("examples, batch, epochs", [(10, 3, 2), (8, 4, 1), (3, 7, 2)])
def test_rows_of_steps_are_those_of_their_batches(examples, batch, epochs):
    orders = batching.epoch_orders(KEY, 0, examples, epochs)
    rows = batching.rows_of_steps(np.asarray(orders), batch)
    assert len(rows) == epochs * batching.steps_per_epoch(examples, batch)
    source = batching.ImageSource(jnp.zeros((examples, 1)), jnp.arange(examples))
    for step, want in enumerate(rows):
        one = (lambda key, source, row: (source.images[row], source.labels[row]), source, orders)
        found = batching.make_batch(*one, KEY, jnp.int32(step), batch_size=batch)
        np.testing.assert_array_equal(found.labels, want)
