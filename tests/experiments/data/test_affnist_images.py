"""Translated and transformed digits, and the reader of affNIST's official files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io
from affnist_files import RNG, digits, write

from experiments.config import UserError
from experiments.data import affnist_images
from experiments.data.affine import ink_bounds, warp

draw = jax.jit(jax.vmap(affnist_images.random_transformation))


def test_canvas_surrounds_the_image_with_zeros():
    images = digits()
    canvases = affnist_images.pad_to_canvas(images)
    assert canvases.shape == (40, 40, 40, 1) and canvases.dtype == np.uint8
    np.testing.assert_array_equal(canvases[:, 6:-6, 6:-6], images)
    assert canvases.sum(dtype=int) == images.sum(dtype=int)


def test_translation_is_by_whole_pixels_and_loses_nothing():
    images = RNG.integers(1, 256, size=(affnist_images.BATCH_SIZE, 28, 28, 1)).astype(np.uint8)
    moved = affnist_images.translate_images(affnist_images.pad_to_canvas(images))
    places = set()
    for image, canvas in zip(images, moved, strict=True):
        top, left = (int(np.flatnonzero(canvas[..., 0].any(axis=a))[0]) for a in (1, 0))
        np.testing.assert_array_equal(canvas[top : top + 28, left : left + 28], image)
        places.add((top, left))
    assert {top for top, _ in places} == {left for _, left in places} == set(range(13))


def test_digits_are_placed_wherever_their_ink_fits():
    """Uniformly, by whole pixels; every ink of 3x2 pixels has 38x39 places on 40x40."""
    image = np.zeros((40, 40, 1), np.uint8)
    image[20:23, 11:13] = RNG.integers(1, 256, size=(3, 2, 1))
    image[21, 11] = 0
    placed = affnist_images.translate_images(np.repeat(image[None], 20_000, axis=0), "canvas")
    counts = np.zeros((38, 39), int)
    for canvas in placed:
        top, left = (int(np.flatnonzero(canvas[..., 0].any(axis=a))[0]) for a in (1, 0))
        np.testing.assert_array_equal(canvas[top : top + 3, left : left + 2], image[20:23, 11:13])
        assert canvas.astype(int).sum() == image.astype(int).sum()
        counts[top, left] += 1
    mean = 20_000 / counts.size
    chi_squared = np.sum((counts - mean) ** 2) / mean
    assert abs(chi_squared - counts.size) < 5 * np.sqrt(2 * counts.size)


@pytest.mark.parametrize("ink", [np.s_[:, :], np.s_[:0, :0]])
def test_full_and_empty_canvases_stay(ink):
    images = np.zeros((9, 40, 40, 1), np.uint8)
    images[:, ink[0], ink[1]] = 7
    np.testing.assert_array_equal(affnist_images.translate_images(images, "canvas"), images)


def test_distances_are_those_of_the_middle_of_the_ink():
    images = np.zeros((5, 40, 40, 3), np.uint8)
    images[0, 19:21, 19:21] = 1
    images[1, 0, 39] = 1
    images[2, 10:14, 20, 1] = 1
    images[3, 5:36, 30:] = 1
    images[3, 20, 20, 2] = 9
    assert affnist_images.distances_from_centre(images).tolist() == [0, 19.5, 8, 10, 0]


def test_transformations_are_within_their_ranges_and_fill_them():
    keys = jax.random.split(jax.random.key(0), 500)
    images = jnp.asarray(affnist_images.pad_to_canvas(digits(500)), jnp.float32)
    drawn = draw(keys, images)
    ranges = {"rotation": 20, "shear": 0.2, "scale_x": 0.2, "scale_y": 0.2}
    values = []
    for name, most in ranges.items():
        value = np.asarray(getattr(drawn, name)) - (1 if "scale" in name else 0)
        assert np.all(abs(value) <= most * 1.001) and value.max() > 0.97 * most
        assert value.std() == pytest.approx(most / np.sqrt(3), rel=0.08)  # uniform
        values.append(value)
    shifts = np.array([drawn.shift_x, drawn.shift_y])
    # 20x20 pixels of ink have 10 pixels of play on each side, less what is drawn larger.
    assert 8 < shifts.max() <= 13 and -13 <= shifts.min() < -8
    correlations = np.corrcoef([*values, *shifts]) - np.eye(6)
    assert abs(correlations).max() < 0.16  # independent: 3.5 / sqrt(500)


def test_no_ink_leaves_the_canvas():
    """On a canvas with a wide margin the same transformation draws the same ink."""
    canvases = affnist_images.pad_to_canvas(digits(500)).astype(np.float32)
    drawn = draw(jax.random.split(jax.random.key(1), 500), jnp.asarray(canvases))
    wide = np.pad(canvases, ((0, 0), (20, 20), (20, 20), (0, 0)))
    inside, all_of_it = (
        np.asarray(jax.jit(jax.vmap(warp))(jnp.asarray(a), drawn)) for a in (canvases, wide)
    )
    np.testing.assert_allclose(all_of_it[:, 20:-20, 20:-20], inside, atol=1e-2)
    np.testing.assert_allclose(all_of_it.sum(axis=(1, 2)), inside.sum(axis=(1, 2)), rtol=1e-5)


@pytest.mark.parametrize("value", [255.0, 0.0])
def test_images_too_large_or_empty_stay_centred(value):
    images = jnp.full((500, 40, 40, 1), value, jnp.float32)
    drawn = draw(jax.random.split(jax.random.key(3), 500), images)
    low, high = (np.asarray(a) for a in jax.jit(jax.vmap(ink_bounds))(images, drawn))
    shifts = np.stack([drawn.shift_x, drawn.shift_y], axis=1)
    fits = (high - low <= 41) & (value > 0)
    assert abs(shifts[~fits]).max() < 1e-5
    assert fits.mean() == (pytest.approx(0.15, abs=0.05) if value else 0)
    assert np.all(shifts[fits] != 0)


def test_synthetic_affnist_depends_on_the_image_and_its_number_alone():
    canvases = affnist_images.pad_to_canvas(digits(3))
    once, again = (affnist_images.transform_images(canvases) for _ in range(2))
    assert once.shape == canvases.shape and once.dtype == np.uint8
    np.testing.assert_array_equal(once, again)
    np.testing.assert_array_equal(
        affnist_images.transform_images(canvases[[0, 1, 1]])[:2], once[:2]
    )
    same = affnist_images.transform_images(np.repeat(canvases[:1], 3, axis=0))
    assert (same[0] != same[1]).any() and (same[1] != same[2]).any()


@pytest.mark.parametrize(
    "place", ["test.mat", "1.mat", "test_batches/1.mat", "transformed/test_batches/1.mat"]
)
def test_official_files_are_found(place, tmp_path):
    images, labels = write(tmp_path / place)
    for where in (tmp_path, tmp_path / place):
        got = affnist_images.read_official_files(str(where))
        np.testing.assert_array_equal(got[0], images[..., None])
        np.testing.assert_array_equal(got[1], labels)
        assert got[0].dtype == np.uint8 and got[1].dtype == np.int32


def test_batches_are_joined_and_doubles_accepted(tmp_path):
    first, labels = write(tmp_path / "test_batches" / "1.mat")
    write(
        tmp_path / "test_batches" / "2.mat",
        images=first[::-1].astype(np.float64),
        labels=labels[None].astype(np.float64),
    )
    images, both = affnist_images.read_official_files(str(tmp_path))
    np.testing.assert_array_equal(images[..., 0], np.concatenate([first, first[::-1]]))
    np.testing.assert_array_equal(both, np.tile(labels, 2))


IMAGES = np.zeros((5, 40, 40))
WRONG = {
    "28x28 images": dict(images=np.zeros((5, 28, 28), np.uint8)),
    "too few labels": dict(labels=np.array([[1, 2]])),
    "no images": dict(image=np.zeros((1600, 0)), labels=np.zeros((1, 0))),
    "a label ten": dict(labels=np.array([[10, 1, 2, 3, 4]])),
    "pixels between": dict(images=IMAGES + 0.5),
    "no number": dict(images=IMAGES + np.nan),
    "negative pixels": dict(images=IMAGES - 1),
    "cells": dict(label_int=np.array([1, "a", 2, 3, 4], dtype=object)),
    "text": dict(image="an image"),
    "complex": dict(images=IMAGES + 1j),
}


@pytest.mark.parametrize("name", WRONG)
def test_other_contents_are_refused(name, tmp_path):
    write(tmp_path / "test.mat", **WRONG[name])
    with pytest.raises(UserError, match="test.mat is not a file of affNIST: .") as refused:
        affnist_images.read_official_files(str(tmp_path))
    assert "\n" not in str(refused.value)


def test_missing_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        affnist_images.read_official_files(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="neither test.mat nor"):
        affnist_images.read_official_files(str(tmp_path))
    path = tmp_path / "test.mat"
    write(path)
    whole = path.read_bytes()
    hdf5 = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400)
    for damaged in (b"", b"not MATLAB", whole[:300], whole[:-2000], hdf5, bytes(500)):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="test.mat is not a file of affNIST: .") as refused:
            affnist_images.read_official_files(str(path))
        assert "\n" not in str(refused.value)
    for other in ({"x": 1}, {"affNISTdata": np.eye(3)}, {"affNISTdata": {"image": 1}}):
        scipy.io.savemat(path, other)
        with pytest.raises(UserError, match="contains no affNISTdata|no image and label_int"):
            affnist_images.read_official_files(str(path))
