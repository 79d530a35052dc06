"""Affine resampling against SciPy and against loops over pixels in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from experiments.data import affine
from experiments.data.affine import Affine, ink_bounds, linear_part

warp = jax.jit(affine.warp)
RNG = np.random.default_rng(0)
CASES = {
    "rotation": Affine(rotation=33.0),
    "shear": Affine(shear=-0.4),
    "scale_x": Affine(scale_x=1.7),
    "scale_y": Affine(scale_y=0.6),
    "shift": Affine(shift_x=2.3, shift_y=-1.6),
    "all": Affine(-17.0, 0.2, 0.8, 1.2, -3.4, 2.7),
    "away": Affine(shift_x=100.0),
}


def image(height=12, width=9, channels=2):
    return RNG.uniform(size=(height, width, channels))


def matrix(t):
    """Of scale, then shear, then rotation, on (x to the right, y downwards)."""
    phi = math.radians(t.rotation)
    rotate = [[math.cos(phi), math.sin(phi)], [-math.sin(phi), math.cos(phi)]]
    return np.array(rotate) @ [[1, -t.shear], [0, 1]] @ np.diag([t.scale_x, t.scale_y])


def by_loops(pixels, t):
    height, width, channels = pixels.shape
    inverse, out = np.linalg.inv(matrix(t)), np.zeros_like(pixels)
    centre = (width - 1) / 2, (height - 1) / 2
    for y in range(height):
        for x in range(width):
            away = [x - centre[0] - t.shift_x, y - centre[1] - t.shift_y]
            u, v = inverse @ away + centre
            for row in (math.floor(v), math.floor(v) + 1):
                for column in (math.floor(u), math.floor(u) + 1):
                    if 0 <= row < height and 0 <= column < width:
                        weight = (1 - abs(u - column)) * (1 - abs(v - row))
                        out[y, x] += weight * pixels[row, column]
    return out


def by_scipy(pixels, t):
    """affine_transform takes output to input, in (row, column)."""
    height, width, _ = pixels.shape
    inverse = np.linalg.inv(matrix(t))[::-1, ::-1]
    centre = np.array([(height - 1) / 2, (width - 1) / 2])
    offset = centre - inverse @ (centre + [t.shift_y, t.shift_x])
    planes = [
        ndimage.affine_transform(plane, inverse, offset, order=1, mode="grid-constant")
        for plane in np.moveaxis(pixels, 2, 0)
    ]
    return np.stack(planes, axis=2)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("reference", [by_loops, by_scipy])
def test_warp(name, reference, x64):
    pixels, t = image(), CASES[name]
    np.testing.assert_allclose(warp(jnp.asarray(pixels), t), reference(pixels, t), atol=1e-12)


def test_warp_in_float32():
    pixels, t = image(), CASES["all"]
    got = warp(jnp.asarray(pixels, jnp.float32), t)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, by_loops(pixels, t), atol=2e-6)


@pytest.mark.parametrize("shape", [(28, 28, 1), (7, 10, 3)])
def test_identity_returns_the_image_exactly(shape):
    pixels = jnp.asarray(RNG.uniform(size=shape), jnp.float32)
    np.testing.assert_array_equal(warp(pixels, Affine()), pixels)


def test_whole_pixels_and_directions():
    """To the right, down, and counter-clockwise; upwards shear goes to the right."""
    pixels = image(5, 5, 1)
    place = jnp.asarray(pixels, jnp.float32)
    moved = warp(place, Affine(shift_x=1.0, shift_y=-2.0))
    np.testing.assert_array_equal(moved[:3, 1:], place[2:, :4])
    assert not np.any(moved[3:]) and not np.any(moved[:, :1])
    np.testing.assert_allclose(warp(place, Affine(rotation=90.0)), np.rot90(place), atol=1e-5)
    sheared = warp(place, Affine(shear=1.0))
    np.testing.assert_allclose(sheared[0, 2:, 0], place[0, :3, 0], atol=1e-6)  # two rows up
    np.testing.assert_allclose(sheared[2], place[2], atol=1e-6)


def test_linear_parts_compose_as_matrices():
    """Matrices multiply; turning forth and back, of a smooth image, is nearly nothing."""
    both = linear_part(Affine(rotation=30.0)) @ linear_part(
        Affine(shear=0.3, scale_x=2.0, scale_y=0.5)
    )
    np.testing.assert_allclose(linear_part(Affine(30.0, 0.3, 2.0, 0.5)), both, atol=1e-6)
    np.testing.assert_allclose(
        linear_part(Affine(rotation=20.0)) @ linear_part(Affine(rotation=25.0)),
        linear_part(Affine(rotation=45.0)),
        atol=1e-6,
    )
    y, x = np.mgrid[-30:31, -30:31]
    smooth = jnp.asarray(np.exp(-(x**2 + 2 * y**2) / 120)[..., None], jnp.float32)
    forth = warp(smooth, Affine(25.0, shift_x=2.0))
    back = warp(warp(forth, Affine(shift_x=-2.0)), Affine(-25.0))
    assert np.abs(forth - smooth).max() > 0.2
    # Interpolation errs by at most an eighth of the second derivatives, 2/120 and 4/120 here,
    # and does so in two of the three steps; at the border there is 0.0006.
    np.testing.assert_allclose(back, smooth, atol=2 * 6 / 120 / 8 + 6e-4)


def test_a_batch_of_images_or_of_transformations():
    pixels = jnp.asarray(RNG.uniform(size=(3, 6, 5, 1)), jnp.float32)
    turns = jnp.array([0.0, 10.0, -40.0])
    batch = jax.vmap(lambda p, a: warp(p, Affine(rotation=a)))(pixels, turns)
    path = jax.vmap(lambda a: warp(pixels[1], Affine(rotation=a)))(turns)
    for n, turn in enumerate(turns):
        np.testing.assert_allclose(batch[n], warp(pixels[n], Affine(rotation=turn)), atol=1e-6)
        np.testing.assert_allclose(path[n], warp(pixels[1], Affine(rotation=turn)), atol=1e-6)


@pytest.mark.parametrize("name", ["rotation", "shear", "scale_x", "scale_y", "all"])
def test_ink_lies_strictly_within_its_bounds(name):
    """Also tightly: a pixel less and some ink would be outside, for rotations by 0."""
    pixels = np.zeros((41, 41, 1), np.float32)
    pixels[12:31, 17:22] = RNG.uniform(0.01, 1, size=(19, 5, 1))
    t = CASES[name]._replace(shift_x=0.0, shift_y=0.0)
    low, high = map(np.asarray, ink_bounds(jnp.asarray(pixels), t))
    rows, columns = np.nonzero(np.asarray(warp(jnp.asarray(pixels), t))[..., 0] > 1e-5)
    for places, least, greatest in zip((columns - 20, rows - 20), low, high, strict=True):
        assert least < places.min() and places.max() < greatest
        if name in ("scale_x", "scale_y"):
            assert places.min() - least <= 2 and greatest - places.max() <= 2


def test_an_empty_image_has_no_ink():
    low, high = ink_bounds(jnp.zeros((4, 4, 1)), Affine())
    assert np.all(np.isinf(low)) and np.all(np.asarray(low) > np.asarray(high))
