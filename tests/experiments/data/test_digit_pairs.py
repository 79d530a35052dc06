"""Pairs of overlapping digits: how they are drawn."""

import functools
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import load_digits

from experiments.data import digit_pairs

# MNIST's digits are scaled into such a box.
SQUARE = np.pad(np.full((20, 20, 1), 200, np.uint8), ((4, 4), (4, 4), (0, 0)))


def source(split="test"):
    arrays = (getattr(load_digits(), f"{split}_{part}") for part in ("images", "labels"))
    return digit_pairs.make_pair_source(*arrays, 10)


@functools.cache
def fixed_pairs(count=500, pixels=4):
    return digit_pairs.fixed_pairs(source(), count, pixels)


@pytest.mark.parametrize("pixels", [4, 6])
def test_overlap_of_boxes(pixels):
    """Mean overlaps are 72.6% and 61.6%, from all displacements of two boxes of 20x20."""
    moves = np.arange(-pixels, pixels + 1)
    apart = np.abs(moves[:, None] - moves[None])
    exact = np.mean(np.maximum(20 - apart, 0) / 20) ** 2
    assert exact == pytest.approx({4: 0.726, 6: 0.616}[pixels], abs=5e-4)
    squares = digit_pairs.PairSource(
        np.stack([SQUARE, SQUARE]),
        np.array([0, 1], np.int32),
        np.array([0, 1], np.int32),
        np.array([0, 1, 2], np.int32),
    )
    images, _ = digit_pairs.fixed_pairs(squares, 4000, pixels)
    got = np.asarray(jax.vmap(digit_pairs.box_overlap)(images))
    # Standard deviation 0.12 to 0.15 of one, over 4000.
    assert got.mean() == pytest.approx(exact, abs=5 * float(got.std()) / 4000**0.5)


def test_overlap_of_relative_displacement_up_to_4_is_79_percent():
    moved = [
        np.pad(SQUARE, ((4 + dy, 4 - dy), (4 + dx, 4 - dx), (0, 0)))
        for dy in range(-4, 5)
        for dx in range(-4, 5)
    ]
    got = jax.vmap(
        lambda other: digit_pairs.box_overlap(
            jnp.stack([jnp.pad(SQUARE, ((4, 4), (4, 4), (0, 0))), other])
        )
    )(np.stack(moved))
    assert np.mean(got) == pytest.approx(0.790, abs=5e-4)


@pytest.mark.parametrize(
    "boxes, want",
    [
        (((2, 4, 6, 9), (2, 4, 6, 9)), 1.0),
        (((0, 0, 4, 4), (2, 1, 6, 5)), 2 * 3 / 16),
        (((0, 0, 8, 8), (2, 3, 4, 6)), 1.0),  # the smaller lies within
        (((0, 0, 4, 4), (4, 4, 8, 8)), 0.0),
        (((0, 0, 2, 9), (1, 2, 9, 4)), 1 * 2 / 16),
        (((0, 0, 3, 3), (5, 0, 9, 3)), 0.0),
        (((0, 0, 0, 0), (5, 0, 9, 3)), 0.0),  # a black image
    ],
)
def test_overlap(boxes, want):
    image = np.zeros((2, 10, 12, 1), np.uint8)
    for digit, (top, left, bottom, right) in zip(image, boxes, strict=True):
        digit[top:bottom, left:right] = 1
    assert float(digit_pairs.box_overlap(jnp.asarray(image))) == pytest.approx(want)
    assert float(digit_pairs.box_overlap(jnp.asarray(image[::-1]))) == pytest.approx(want)


def test_partners_are_of_another_class_and_otherwise_equally_probable():
    labels = np.array([2, 0, 2, 1, 0, 2, 2, 0], np.int32)
    images = np.zeros((8, 3, 3, 1), np.uint8)
    made = jax.tree.map(jnp.asarray, digit_pairs.make_pair_source(images, labels, 4))
    keys = jax.random.split(jax.random.key(0), 3000)
    for label in range(4):
        others = np.flatnonzero(labels != label)
        got = np.asarray(
            jax.vmap(lambda k, label=label: digit_pairs.random_partner(k, made, label))(keys)
        )
        counts = np.bincount(got, minlength=8)
        assert set(np.flatnonzero(counts)) == set(others)
        p = 1 / len(others)
        assert (abs(counts[others] - 3000 * p) < 6 * (3000 * p * (1 - p)) ** 0.5).all()


def whereabouts(canvas):
    """Returns rows and displacements of the test digits that are found on a canvas."""
    found = []
    for dy in range(-4, 5):
        for dx in range(-4, 5):
            there = canvas[4 + dy : 32 + dy, 4 + dx : 32 + dx]
            rows = np.flatnonzero((load_digits().test_images == there).all((1, 2, 3)))
            # Nothing may lie outside of the digit.
            if len(rows) and there.astype(int).sum() == canvas.astype(int).sum():
                found += [(row, dy, dx) for row in rows]
    return found


def test_fixed_pairs_are_translated_test_digits_of_two_classes():
    images, labels = fixed_pairs(12)
    assert images.shape == (12, 2, 36, 36, 1) and images.dtype == np.uint8
    assert labels.shape == (12, 2) and labels.dtype == np.int32
    assert (labels[:, 0] != labels[:, 1]).all()
    for pair, names in zip(images, labels, strict=True):
        for canvas, label in zip(pair, names, strict=True):
            places = whereabouts(canvas)
            assert places and {load_digits().test_labels[row] for row, _, _ in places} == {label}


def test_every_digit_is_first_once_before_it_is_first_again():
    images, labels = fixed_pairs(500)
    first = np.bincount(labels[:360, 0], minlength=10)
    np.testing.assert_array_equal(first, np.bincount(load_digits().test_labels))
    np.testing.assert_array_equal(labels[360:, 0], labels[:140, 0])
    assert (images[360:] != images[:140]).any((1, 2, 3, 4)).all()


def test_larger_sets_of_pairs_begin_with_the_smaller_ones():
    fewer = fixed_pairs(12)
    for few, many in zip(fewer, fixed_pairs(500), strict=True):
        np.testing.assert_array_equal(few, many[:12])


TEST_SUM = "4320158a91e45ae5"


def checksum(*arrays):
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()


def test_fixed_pairs_have_a_known_checksum():
    """The pairs are the same on every version of Python and JAX."""
    images, labels = fixed_pairs(500)
    assert checksum(images, labels)[:16] == TEST_SUM
