"""Image files as a network sees them, and the program that says what it makes of them."""

import csv
import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import matplotlib.image
import numpy as np
import pytest
from helpers import ROOT, TINY, train
from PIL import Image

from experiments import predict
from experiments.analysis import classify_images, saved_run
from experiments.analysis.classify_images import Classification
from experiments.config import UserError
from experiments.data import image_files
from experiments.data.datasets import enlarged_digits
from experiments.predict import Flags

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (12, 9), dtype=np.uint8)
COLOR = RNG.integers(0, 256, (12, 9, 3), dtype=np.uint8)
ALPHA = RNG.integers(1, 255, (12, 9), dtype=np.uint8)


@pytest.fixture(scope="module")
def digits():
    """Test images of the bundled digits, one of each class, floats [10, 28, 28, 1]."""
    found = enlarged_digits()
    first = [np.flatnonzero(found["test_labels"] == k)[0] for k in range(10)]
    return np.float32(found["test_images"][first]) / 255


def written(tmp_path, picture, name="x.png", **options):
    picture.save(tmp_path / name, **options)
    return tmp_path / name


def of(array):
    return Image.fromarray(array)


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


def write(folder, name, content):
    (folder / name).write_bytes(content)
    return folder / name


def jpeg(folder):
    return written(folder, of(np.kron(COLOR, np.ones((9, 9, 1), np.uint8))), "x.jpg").read_bytes()


BAD = {
    "missing.png": (None, "No such file or directory"),
    "empty.png": (lambda f: b"", "an empty file"),
    "words.png": (lambda f: b"hello", "not an image of a known kind"),
    "drawing.png": (lambda f: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "cut.jpg": (lambda f: jpeg(f)[:900], "damaged: image file is truncated"),
    "spoilt.png": (lambda f: written(f, of(GREY)).read_bytes()[:60] + b"x" * 50, "damaged: "),
    "dot.png": (lambda f: written(f, Image.new("L", (1, 1))).read_bytes(), "1x1 pixels are too"),
    "line.png": (lambda f: written(f, Image.new("L", (99, 3))).read_bytes(), "99x3 pixels are too"),
    "bomb.png": (lambda f: written(f, Image.new("1", (10_000, 9_000))).read_bytes(), "too many"),
    "bombs.png": (lambda f: written(f, Image.new("1", (20_000, 9_000))).read_bytes(), "too many"),
    "clear.png": (lambda f: written(f, Image.new("RGBA", (9, 9))).read_bytes(), "wholly transpar"),
    "wild.tif": (lambda f: written(f, of(np.full((9, 9), 7.5, np.float32)), "x.tif").read_bytes(),
                 "neither 8 nor 16 bits nor"),
    "nan.tif": (lambda f: written(f, of(np.full((9, 9), np.nan, np.float32)), "x.tif").read_bytes(),
                "neither 8 nor 16 bits nor"),
    "int.tif": (lambda f: written(f, of(np.full((9, 9), 70_000, np.int32)), "x.tif").read_bytes(),
                "neither 8 nor 16 bits nor"),
}


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


@pytest.mark.parametrize("own, borders, negative", [
    (1.0, (0.0, 0.0), True), (0.0, (0.0, 0.0), False), (0.6, (0.0, 0.2), True),
    (0.4, (0.0, 0.2), False), (0.1, (0.9, 1.0), True), (0.9, (0.9, 1.0), False),
    (1.0, (0.1, 0.8), False), (0.0, (0.1, 0.8), False)])
def test_what_is_taken_for_a_negative(own, borders, negative):
    image = np.full((9, 7, 1), own, np.float32)
    image[1:-1, 1:-1] = 1 - own  # what is inside does not count
    image[0, :3] = 0.5  # nor do a few pixels
    assert image_files.is_negative(image, borders) == negative


def test_padding_keeps_the_ratio_and_the_ground(digits):
    assert (image_files.pad(digits[3], (28, 28)) == digits[3]).all()
    image = np.full((10, 40, 3), 0.25, np.float32)
    image[2:6, 10:30] = 1
    got = image_files.pad(image, (20, 20))
    assert got.shape == (20, 20, 3)
    rows, columns = (np.flatnonzero((got[..., 0] > 0.7).any(axis=k)) for k in (1, 0))
    assert (rows[0], rows[-1]) == (8, 9) and (columns[0], columns[-1]) == (5, 14)
    assert (got[:7] == 0.25).all() and (got[12:] == 0.25).all()
    assert image_files.pad(np.zeros((4, 900, 1), np.float32), (28, 28)).shape == (28, 28, 1)


@pytest.mark.parametrize("label", range(10))
def test_digits_are_placed_as_those_of_mnist(label, digits):
    """Box and centre of mass measured in float64, wherever the digit was, however grey it was."""
    large = np.kron(digits[label, ..., 0], np.ones((4, 4), np.float32))
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


def test_a_blank_page_holds_no_digit():
    assert not image_files.centre_digit(np.full((40, 30, 1), 0.7, np.float32), (28, 28)).any()


def test_what_is_longer_than_its_field_allows_stays_inside():
    comet = np.zeros((100, 100, 1), np.float32)
    comet[48:52, 5:95] = 0.3  # a faint tail
    comet[40:60, 75:95] = 1
    got = image_files.centre_digit(comet, (28, 28))
    assert got.shape == (28, 28, 1) and (got[:, 0] > 0.05).any()


@pytest.fixture
def folder(tmp_path, digits):
    """Two good images, one of them a negative, and three bad ones."""
    here = tmp_path / "folder"
    here.mkdir()
    one, two = (np.uint8(np.round(255 * digits[k, ..., 0])) for k in (3, 8))
    written(here, of(one), "a.png")
    written(here, of(255 - two).convert("RGB"), "b.png")
    for name in ("empty.png", "words.png", "cut.jpg"):
        write(here, name, BAD[name][0](tmp_path))
    return here


def test_a_folder_with_bad_images_yields_the_others(tiny_run, folder, digits, tmp_path):
    output = tmp_path / "out" / "p.png"
    command = [sys.executable, "-W", "error::UserWarning", "-m", "experiments.predict", str(folder),
               f"--run={tiny_run}", f"--output={output}", "--accelerator=cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith(str(folder))]
    assert [Path(line.split(":")[0]).name for line in told] == ["cut.jpg", "empty.png", "words.png"]
    assert "0.00 to 0.00 (0 is black" in done.stderr
    head, a, b = done.stdout.splitlines()
    assert "length" in head and a.endswith("as it is, pad") and b.endswith("inverted, pad")

    run = saved_run.open_run(tiny_run)
    lengths = jax.jit(run.setup.model.apply)(run.params, digits[[3, 8]]).scores
    with open(output.with_suffix(".csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["file"]).name for row in rows] == ["a.png", "b.png"]
    for row, length in zip(rows, np.asarray(lengths), strict=True):
        order = np.argsort(-length)
        assert [row["class"], row["second"]] == [str(k) for k in order[:2]]
        got = float(row["length"]), float(row["second_length"])
        np.testing.assert_allclose(got, length[order[:2]], rtol=1e-3)
        assert row["confident"] == str(int(length.max() >= 0.5))
    assert [row["inverted"] for row in rows] == ["0", "1"]
    assert matplotlib.image.imread(output).shape[1] == 1050


def call(run, *paths, **changes):
    predict.main(Flags(run=str(run), **changes), *map(str, paths))


def test_flags_decide_how_an_image_is_taken(tiny_run, folder, tmp_path, capsys, digits):
    taken = {}
    for invert, fit in (("yes", "pad"), ("no", "digit"), ("auto", "auto")):
        output = tmp_path / f"{invert}.pdf"
        call(tiny_run, folder / "a.png", invert=invert, fit=fit, output=str(output))
        taken[invert] = capsys.readouterr().out.splitlines()[1]
        assert output.read_bytes().startswith(b"%PDF")
        assert not output.with_suffix(".csv").exists(), "no folder was given"
    assert taken["yes"].endswith("inverted, pad") and taken["no"].endswith("as it is, digit")
    assert taken["auto"].endswith("as it is, pad")

    run = saved_run.open_run(tiny_run)
    for invert, fit, want in (("yes", "pad", 1 - digits[3]), ("no", "pad", digits[3]),
                              ("no", "digit", image_files.centre_digit(digits[3], (28, 28)))):
        (seen,) = classify_images.prepare_images(run, [folder / "a.png"], invert, fit)
        assert seen.pixels.dtype == np.uint8  # the nearest level; ties are float32's to break
        assert np.abs(seen.pixels - 255 * np.float64(want)).max() <= 0.5 + 1e-4


def test_mnist_digits_are_centred_unless_they_have_the_size(tiny_run, folder, tmp_path, digits):
    opened = saved_run.open_run(tiny_run)
    config = dataclasses.replace(opened.setup.config, dataset="mnist")
    run = opened._replace(setup=opened.setup._replace(config=config))
    large = written(tmp_path, of(np.uint8(255 * np.kron(digits[3, ..., 0], np.ones((3, 3))))))
    found = classify_images.prepare_images(run, [large, folder / "a.png"], "auto", "auto")
    assert [seen.fit for seen in found] == ["digit", "pad"]
    (seen,) = classify_images.prepare_images(opened, [large], "auto", "auto")
    assert seen.fit == "pad"


def test_none_is_said_below_a_half(digits):
    sure, unsure = (Classification(("cat", "dog"), (score, 0.25), digits[0], None)
                    for score in (0.5, 0.499))
    assert predict.describe(sure) == ("cat 0.500", "dog 0.250")
    assert predict.describe(unsure) == ("none with confidence (cat 0.499)", "dog 0.250")


def test_a_network_without_capsules_has_probabilities(folder, digits, tmp_path, capsys):
    config = dataclasses.replace(
        TINY, model="cnn", steps=1, workdir=str(tmp_path / "run"))
    train(config)
    call(tmp_path / "run", folder / "a.png")
    out = capsys.readouterr().out.splitlines()
    assert "class, probability" in out[-2]
    run = saved_run.open_run(tmp_path / "run")
    logits = np.float64(run.setup.model.apply(run.params, digits[[3]]).scores[0])
    likely = np.exp(logits) / np.exp(logits).sum()
    images = classify_images.prepare_images(run, [folder / "a.png"], "no", "pad")
    (found,) = classify_images.classify(run, images)
    np.testing.assert_allclose(found.scores, np.sort(likely)[:-3:-1], rtol=1e-5)
    assert found.names == tuple(str(k) for k in np.argsort(-likely)[:2])
    assert found.reconstruction is None
    assert (tmp_path / "run" / "predictions.png").exists()


@pytest.mark.parametrize("arguments, message", [
    ((), "give a run and images"),
    (("--run={run}",), "give a run and images"),
    (("{folder}/a.png",), "give a run and images"),
    (("{folder}/a.png", "--run={run}x"), "no such folder, did you mean {run}?"),
    (("{folder}/a.png", "--run={run}", "--output=p.jpg"), "must end in .png or .pdf"),
    (("--run={run}", "{run}"), "contains no images"),
])
def test_user_errors(arguments, message, tiny_run, folder):
    places = {"run": str(tiny_run), "folder": str(folder)}
    given = [argument.format(**places) for argument in arguments]
    flags = dict(a[2:].split("=") for a in given if a.startswith("--"))
    with pytest.raises(UserError) as error:
        predict.main(Flags(**flags), *(a for a in given if not a.startswith("--")))
    assert message.format(**places) in str(error.value)


def test_a_picture_that_cannot_be_written(tiny_run, folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--output=.*can't be written"):
        call(tiny_run, folder / "a.png", output=str(tmp_path / "file" / "p.png"))


def test_all_bad_is_status_1_without_a_picture(tiny_run, folder, tmp_path, capsys):
    with pytest.raises(SystemExit, match="1"):
        call(tiny_run, folder / "empty.png", output=str(tmp_path / "p.png"))
    assert not (tmp_path / "p.png").exists()
