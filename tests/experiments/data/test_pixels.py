"""What pixels of user-provided arrays mean: converted, or refused with the cure."""

import re

import numpy as np
import pytest

from experiments.data.pixels import as_images

RAW = np.random.default_rng(0).integers(0, 256, (6, 8, 9, 3), np.uint8)
RAW[0, 0, 0] = 0, 255, 128


@pytest.mark.parametrize(
    "given, said",
    [
        (RAW, None),
        (RAW / 255, "float64, taken as 0 .black. to 1 .white."),
        (np.float32(RAW) / np.float32(255), "float32, taken as 0"),
        (np.float16(RAW / 255), "float16, taken as 0"),
        (np.float64(RAW), "float64, taken as 0 .black. to 255"),
        (RAW.astype(np.int16), "int16, taken as 0 .black. to 255"),
        (RAW.astype(np.uint16), "uint16, taken as 0 .black. to 255"),
        (RAW.astype(np.int64), "int64, taken as 0 .black. to 255"),
        (RAW.astype(">f4") / np.float32(255), "taken as 0"),
    ],
)
def test_clear_ranges_are_taken_exactly(given, said):
    pixels, notes = as_images("train_images", given)
    assert pixels.dtype == np.uint8
    # The steps of float16 near one are an eighth of a pixel, so that rounding recovers all.
    np.testing.assert_array_equal(pixels, RAW)
    assert len(notes) == (said is not None)
    assert not said or re.search(said, notes[0])


def test_booleans_and_images_without_channels():
    mask = RAW[..., 0] > 99
    pixels, notes = as_images("train_images", mask)
    np.testing.assert_array_equal(pixels, np.where(mask, 255, 0)[..., None])
    assert "True taken as white" in notes[0]
    pixels, notes = as_images("train_images", RAW[..., 0])
    np.testing.assert_array_equal(pixels, RAW[..., :1])
    assert not notes


@pytest.mark.parametrize(
    "given, message, cure",
    [
        (RAW // 255, "the largest pixel is 1, nearly black .uint8.", "a * 255"),
        (np.int64(RAW > 99), "the largest pixel is 1, nearly black .int64.", "a * 255"),
        (0 * RAW, "the largest pixel is 0", None),
        (RAW / 255**2, "largest pixel is 0.0039215.*divided twice", None),
        (RAW / 255 * 254.5, "float64 from 0 to 254.5", "np.uint8(np.rint(a))"),
        (
            (RAW - 127.5) / 70,
            r"float64 from -1.82\d* to 1.82\d*, and their black",
            "np.uint8(255 * (np.float64(a) - (-1.82143)) / (1.82143 - (-1.82143)))",
        ),
        (RAW / 128, r"from 0 to 1.99\d*", "np.uint8(np.rint(a))"),
        (np.int16(RAW) - 128, "int16 from -128 to 127", None),
        (np.int8(np.int16(RAW) - 128), "int8 from -128 to 127", None),
        (np.uint16(RAW) * 257, "uint16 from 0 to 65535", "np.uint8(a // 257)"),
        (np.where(RAW == 0, np.nan, RAW / 255), "contain NaN or infinity", "np.nan_to_num(a)"),
        (RAW / 255 + 0j, "complex128, not numbers", None),
        (RAW.astype(str), "<U3, not numbers", None),
        (RAW.transpose(0, 3, 1, 2), "6x3x8x9, channels first", "np.moveaxis(a, 1, -1)"),
        (RAW[..., :1].transpose(0, 3, 1, 2), "6x1x8x9, channels first", "np.moveaxis(a, 1, -1)"),
        (RAW[..., None], "6x8x9x3x1, not images", "a.reshape(*a.shape[:3], -1)"),
        (RAW.reshape(6, -1), "6x216, not images", "a.reshape(-1, H, W)"),
        (RAW.ravel(), "1296, not images", None),
        (RAW[:, :3], "6x3x9x3: fewer than 4x4", None),
    ],
)
def test_unclear_pixels_are_refused_with_the_cure(given, message, cure):
    with pytest.raises(ValueError, match=message) as error:
        as_images("a", given)
    assert "\n" not in str(error.value)
    if cure:
        assert cure in str(error.value)
        with np.errstate(all="ignore"):
            cured = eval(cure, {"np": np, "a": given, "H": 8, "W": 27})
        as_images("a", cured)


def test_many_channels_in_few_rows_are_said():
    given = np.tile(RAW[:, :5, :, :1], (1, 1, 1, 9))
    pixels, (note,) = as_images("a", given)
    np.testing.assert_array_equal(pixels, given)
    assert "5x9 pixels with 9 channels" in note and "np.moveaxis(a, 1, -1)" in note
