"""Random distortions of training images: against SciPy, with what each random choice may be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from experiments.config.experiment import AUGMENTATIONS
from experiments.data import augment, digit_pairs, distortions
from experiments.data.distortions import RANGES

KEYS = jax.random.split(jax.random.key(3), 2000)
IMAGE = np.random.default_rng(0).integers(0, 256, (14, 11, 2), np.uint8)
AFFINE = RANGES["affine"]


def scipy_warp(image, t):
    """Resamples by SciPy, which wants the map from target to source in (row, column)."""
    phi = np.deg2rad(t.rotation)
    rotate = np.array([[np.cos(phi), np.sin(phi)], [-np.sin(phi), np.cos(phi)]])
    matrix = rotate @ [[1, -t.shear], [0, 1]] @ np.diag([t.scale_x, t.scale_y])  # of (x, y)
    inverse = np.linalg.inv(matrix)
    rows, columns = np.meshgrid(*map(np.arange, image.shape[:2]), indexing="ij")
    centre = (np.array(image.shape[1::-1]) - 1) / 2
    places = np.stack([columns - centre[0] - t.shift_x, rows - centre[1] - t.shift_y], -1)
    x, y = np.moveaxis(places @ inverse.T + centre, -1, 0)
    # A border of zeros, because SciPy does not interpolate beyond the outermost pixels.
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    channels = [
        ndimage.map_coordinates(padded[..., c], [y + 2, x + 2], order=1, cval=0.0)
        for c in range(image.shape[2])
    ]
    return np.stack(channels, -1)


@pytest.mark.parametrize("name", RANGES)
def test_distortions_are_transformations_within_their_ranges(name):
    ranges, size = RANGES[name], IMAGE.shape[:2]
    drawn = jax.jit(jax.vmap(lambda k: distortions.random_transformation(k, ranges, size)))(KEYS)
    limits = {
        "rotation": (0, ranges.rotation),
        "shear": (0, ranges.shear),
        "scale_x": (1, ranges.scale),
        "scale_y": (1, ranges.scale),
        "shift_x": (0, ranges.shift * 11),
        "shift_y": (0, ranges.shift * 14),
    }
    columns = []
    for field, (middle, most) in limits.items():
        share = (np.float64(getattr(drawn, field)) - middle) / most
        assert abs(share).max() <= 1 + 1e-6, field
        # Uniform: mean 0 and mean square 1/3, within five standard deviations of 2,000 draws.
        assert abs(share.mean()) < 0.065 and abs(np.mean(share**2) - 1 / 3) < 0.034, field
        columns.append(share)
    assert abs(np.corrcoef(columns) - np.eye(6)).max() < 0.12


def test_distorted_images_are_those_of_scipy():
    image = jnp.float32(IMAGE) / 255
    got = jax.jit(jax.vmap(lambda k: distortions.distort(k, image, AFFINE)))(KEYS[:20])
    for key, one in zip(KEYS[:20], got, strict=True):
        place, _ = jax.random.split(key)
        drawn = distortions.random_transformation(place, AFFINE, IMAGE.shape[:2])
        want = scipy_warp(np.float64(image), jax.tree.map(np.float64, drawn))
        np.testing.assert_allclose(one, want, atol=2e-5)
    assert abs(np.asarray(got) - np.asarray(image)).max(axis=(1, 2, 3)).min() > 0.1


def test_every_square_is_erased_equally_often():
    ones = np.ones((5, 4, 2), np.float32)
    got = jax.jit(jax.vmap(lambda k: distortions.erase_square(k, ones, 3)))(KEYS)
    counts = {}
    for image in np.asarray(got):
        rows, columns = np.where(image[..., 0] == 0)
        top, left = rows.min(), columns.min()
        want = ones.copy()
        want[top : top + 3, left : left + 3] = 0
        np.testing.assert_array_equal(image, want)
        counts[top, left] = counts.get((top, left), 0) + 1
    # 333 each; six standard deviations are 100.
    assert len(counts) == 6 and all(abs(n - 333) < 100 for n in counts.values())


def test_strong_distortions_erase_a_seventh_of_the_side():
    ones = jnp.ones((28, 28, 1))
    ranges = distortions.Ranges(0.0, 0.0, 0.0, 0.0, RANGES["strong"].erased)
    got = jax.jit(jax.vmap(lambda k: distortions.distort(k, ones, ranges)))(KEYS[:50])
    np.testing.assert_array_equal(np.sum(np.asarray(got) == 0, axis=(1, 2, 3)), 16)


def assert_same(got, want):
    # XLA may multiply by the reciprocal where NumPy divides.
    np.testing.assert_allclose(got, want, atol=1e-6)


def inputs(preprocessing, count=200):
    train = jax.jit(jax.vmap(lambda k: preprocessing.train(k, jnp.asarray(IMAGE))))
    return np.asarray(train(KEYS[:count]))


def is_among(images, legal):
    return all(any(np.allclose(one, other, atol=1e-6) for other in legal) for one in images)


def test_augmentation_of_whole_images():
    unit = np.float32(IMAGE) / np.float32(255)
    made = {name: augment.random_shifts(1, name) for name in AUGMENTATIONS}
    for one in made.values():
        assert_same(one.evaluate(jnp.asarray(IMAGE)), unit)
    assert_same(inputs(made["none"], 3), [unit] * 3)
    np.testing.assert_array_equal(inputs(made["auto"]), inputs(made["shift"]))
    padded = np.pad(unit, ((1, 1), (1, 1), (0, 0)))
    shifts = [padded[y : y + 14, x : x + 11] for y in range(3) for x in range(3)]
    mirrored = [shift[:, ::-1] for shift in shifts]
    assert is_among(inputs(made["shift"]), shifts)
    flipped = inputs(made["flip"])
    assert is_among(flipped, shifts + mirrored)
    assert 60 < sum(is_among([one], shifts) for one in flipped) < 140
    for name in RANGES:
        assert not is_among(inputs(made[name], 1), shifts)


def test_augmentation_of_a_canvas():
    for name in ("none", "flip", "strong"):
        one = augment.random_shifts_on_canvas(2, 1, name)
        assert inputs(one, 2).shape == (2, 18, 15, 2)
        canvas = np.pad(np.float32(IMAGE) / np.float32(255), ((2, 2), (2, 2), (0, 0)))
        assert_same(one.evaluate(jnp.asarray(IMAGE)), canvas)
    assert_same(inputs(augment.random_shifts_on_canvas(2, 1, "none"), 1)[0], canvas)


@pytest.mark.slow
def test_augmentation_of_crops():
    make = functools.partial(augment.square_crops, 9, flip=True, standardized=False)
    unit = np.float32(IMAGE) / np.float32(255)
    crops = [unit[y : y + 9, x : x + 9] for y in range(6) for x in range(3)]
    mirrored = [crop[:, ::-1] for crop in crops]
    got = inputs(make(augmentation="none"), 2)
    assert_same(got, [unit[2:11, 1:10]] * 2)
    assert is_among(inputs(make(augmentation="shift")), crops)
    flipped = inputs(make(augmentation="flip"))
    assert is_among(flipped, crops + mirrored) and not is_among(flipped, crops)
    np.testing.assert_array_equal(inputs(make(augmentation="auto")), inputs(make()))
    for name in RANGES:
        assert not np.array_equal(inputs(make(augmentation=name), 9), inputs(make(), 9))


def test_digits_of_pairs_are_distorted_before_they_are_shifted():
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
    source = digit_pairs.make_pair_source(images, np.array([0, 0, 1, 1], np.int32), 2)
    plain, labels = digit_pairs.random_pair(KEYS[0], source, 1, 2)
    same, _ = digit_pairs.random_pair(KEYS[0], source, 1, 2, lambda key, image: image)
    np.testing.assert_array_equal(plain, same)
    doubled, again = digit_pairs.random_pair(KEYS[0], source, 1, 2, lambda key, image: image // 2)
    np.testing.assert_array_equal(doubled, plain // 2)
    np.testing.assert_array_equal(labels, again)
    warped, _ = digit_pairs.random_pair(KEYS[0], source, 1, 2, distortions.of_bytes("strong"))
    assert warped.dtype == np.uint8 and not np.array_equal(warped, plain)
    assert distortions.of_bytes("shift") is None
