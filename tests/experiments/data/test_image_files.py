"""Images read from files, and fitted to what a network was trained on."""

import numpy as np
import pytest
from picture_files import ALPHA, BAD, COLOR, GREY, RNG, of, write, written
from PIL import Image

from experiments.config import UserError
from experiments.data import image_files


@pytest.mark.parametrize("name", ["x.png", "x.bmp", "x.tiff", "x.PGM"])
def test_grey_pixels_are_read_exactly(name, tmp_path):
    got = image_files.read(written(tmp_path, of(GREY), name))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, np.float64(GREY) / 255, atol=1e-7)


@pytest.mark.parametrize("name", ["x.png", "x.bmp", "x.ppm"])
def test_colours_are_read_exactly(name, tmp_path):
    got = image_files.read(written(tmp_path, of(COLOR), name))
    np.testing.assert_allclose(got, np.float64(COLOR) / 255, atol=1e-7)


@pytest.mark.parametrize("name", ["x.png", "x.tiff", "x.pgm"])
def test_sixteen_bits_are_kept(name, tmp_path):
    values = RNG.integers(0, 65536, (12, 9), dtype=np.uint16)
    got = image_files.read(written(tmp_path, of(values), name))
    np.testing.assert_allclose(got, np.float64(values) / 65535, atol=1e-6)


def test_palettes_bits_and_floats(tmp_path):
    palette = of(COLOR // 64 * 64).quantize(64)
    got = image_files.read(written(tmp_path, palette, "x.gif"))
    np.testing.assert_allclose(got, np.float64(palette.convert("RGB")) / 255, atol=1e-7)
    bits = GREY > 99
    np.testing.assert_array_equal(image_files.read(written(tmp_path, of(bits))), bits)
    floats = RNG.uniform(size=(12, 9)).astype(np.float32)
    np.testing.assert_array_equal(image_files.read(written(tmp_path, of(floats), "x.tiff")), floats)


@pytest.mark.parametrize("bright", [True, False])
def test_transparency_is_on_the_ground_that_shows_the_ink(bright, tmp_path):
    color = np.uint8(COLOR // 4 + 190 * bright)
    picture = of(np.dstack([color, ALPHA]))
    share = ALPHA[..., None] / 255
    want = share * color / 255 + (1 - share) * (0 if bright else 1)
    np.testing.assert_allclose(image_files.read(written(tmp_path, picture)), want, atol=1e-6)
    flat = of(np.where(GREY > 99, np.uint8(200 * bright), 255 * (not bright)).astype(np.uint8))
    got = image_files.read(written(tmp_path, flat, transparency=255 * (not bright)))
    assert got.shape == (12, 9, 3)
    np.testing.assert_allclose(got[..., 0], np.float64(flat) / 255, atol=1e-6)


def test_photographs_are_turned_upright_and_large_ones_made_smaller(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    turned = image_files.read(written(tmp_path, of(GREY), exif=exif))
    np.testing.assert_allclose(turned, np.rot90(GREY, -1) / 255, atol=1e-7)
    large = image_files.read(written(tmp_path, of(np.kron(GREY, np.ones((200, 200), np.uint8)))))
    assert large.shape == (1024, 768)
    assert large.mean() == pytest.approx(GREY.mean() / 255, rel=1e-3)


def test_large_images_of_16_bits_stay_between_black_and_white(tmp_path):
    stripes = np.tile(np.repeat(np.uint8([0, 255, 128]), 5), (1500, 100))
    eight = image_files.read(written(tmp_path, of(stripes), "8.png"))
    sixteen = image_files.read(written(tmp_path, of(np.uint16(stripes) * 257), "16.png"))
    assert sixteen.shape == eight.shape == (1024, 1024)
    assert sixteen.min() == 0 and sixteen.max() == 1
    np.testing.assert_allclose(sixteen, eight, atol=1.5 / 255)


def test_a_photograph_with_damaged_metadata_is_read(tmp_path):
    file = written(tmp_path, of(GREY), "x.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\x09\0")
    with pytest.warns(UserWarning, match="EXIF"), Image.open(file) as image:
        image.getexif()
    assert image_files.read(file).shape == GREY.shape


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named_in_one_line(name, tmp_path):
    make, message = BAD[name]
    path = write(tmp_path, name, make(tmp_path)) if make else tmp_path / name
    with pytest.raises(image_files.UnreadableImage) as error:
        image_files.read(path)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_folders_give_their_images_in_order(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt", ".hidden.png", "c.tif"):
        (tmp_path / name).write_bytes(b"")
    found = image_files.find([str(tmp_path / "notes.txt"), str(tmp_path)])
    assert [path.name for path in found] == ["notes.txt", "a.JPG", "b.png", "c.tif"]
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="none contains no images .*.png"):
        image_files.find([str(tmp_path), str(tmp_path / "none")])


def test_grey_of_colour_and_colour_of_grey():
    color = np.float32(COLOR) / 255
    want = (0.299 * np.float64(COLOR[..., 0]) + 0.587 * COLOR[..., 1] + 0.114 * COLOR[..., 2]) / 255
    np.testing.assert_allclose(image_files.with_channels(color, 1)[..., 0], want, atol=1e-6)
    assert image_files.with_channels(color, 3) is color
    grey = image_files.with_channels(color[..., 0], 3)
    assert grey.shape == (12, 9, 3) and (grey == color[..., :1]).all()
    assert image_files.with_channels(color[..., 0], 1).shape == (12, 9, 1)


@pytest.mark.parametrize(
    "own, borders, negative",
    [
        (1.0, (0.0, 0.0), True),
        (0.0, (0.0, 0.0), False),
        (0.6, (0.0, 0.2), True),
        (0.4, (0.0, 0.2), False),
        (0.1, (0.9, 1.0), True),
        (0.9, (0.9, 1.0), False),
        (1.0, (0.1, 0.8), False),
        (0.0, (0.1, 0.8), False),
    ],
)
def test_negatives_are_detected_from_the_border(own, borders, negative):
    image = np.full((9, 7, 1), own, np.float32)
    image[1:-1, 1:-1] = 1 - own  # what is inside does not count
    image[0, :3] = 0.5  # nor do a few pixels
    assert image_files.is_negative(image, borders) == negative


def test_padding_keeps_the_ratio_and_the_ground(ten_digits):
    assert (image_files.pad(ten_digits[3], (28, 28)) == ten_digits[3]).all()
    image = np.full((10, 40, 3), 0.25, np.float32)
    image[2:6, 10:30] = 1
    got = image_files.pad(image, (20, 20))
    assert got.shape == (20, 20, 3)
    rows, columns = (np.flatnonzero((got[..., 0] > 0.7).any(axis=k)) for k in (1, 0))
    assert (rows[0], rows[-1]) == (8, 9) and (columns[0], columns[-1]) == (5, 14)
    assert (got[:7] == 0.25).all() and (got[12:] == 0.25).all()
    assert image_files.pad(np.zeros((4, 900, 1), np.float32), (28, 28)).shape == (28, 28, 1)


@pytest.mark.parametrize("label", range(10))
def test_digits_are_placed_as_those_of_mnist(label, ten_digits):
    """Measures box and centre of mass in float64, for digits at any position and brightness."""
    large = np.kron(ten_digits[label, ..., 0], np.ones((4, 4), np.float32))
    got = []
    for top, left, ink, paper in ((0, 0, 1.0, 0.0), (70, 31, 0.6, 0.2)):
        field = np.full((200, 250, 1), paper, np.float32)
        field[top + 5 : top + 117, left + 5 : left + 117, 0] += large * (ink - paper)
        got.append(image_files.centre_digit(field, (28, 28)))
    np.testing.assert_allclose(*got, atol=1e-5)
    one = np.float64(got[0][..., 0])
    assert one.max() == pytest.approx(1) and one.min() == 0
    rows, columns = (np.flatnonzero((one > 0.15).any(axis=k)) for k in (1, 0))
    sides = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert 19 <= max(sides) <= 20
    mass = [(one.sum(axis=1 - k) @ np.arange(28)) / one.sum() for k in (0, 1)]
    np.testing.assert_allclose(mass, 14, atol=0.51)


def test_blank_image_gives_an_empty_digit():
    assert not image_files.centre_digit(np.full((40, 30, 1), 0.7, np.float32), (28, 28)).any()


def test_elongated_digit_stays_inside_the_field():
    comet = np.zeros((100, 100, 1), np.float32)
    comet[48:52, 5:95] = 0.3  # a faint tail
    comet[40:60, 75:95] = 1
    got = image_files.centre_digit(comet, (28, 28))
    assert got.shape == (28, 28, 1) and (got[:, 0] > 0.05).any()
