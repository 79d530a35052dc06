"""Images written to files, readable and unreadable."""

import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (12, 9), dtype=np.uint8)
COLOR = RNG.integers(0, 256, (12, 9, 3), dtype=np.uint8)
ALPHA = RNG.integers(1, 255, (12, 9), dtype=np.uint8)


def written(tmp_path, picture, name="x.png", **options):
    picture.save(tmp_path / name, **options)
    return tmp_path / name


def of(array):
    return Image.fromarray(array)


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
    "wild.tif": (
        lambda f: written(f, of(np.full((9, 9), 7.5, np.float32)), "x.tif").read_bytes(),
        "neither 8 nor 16 bits nor",
    ),
    "nan.tif": (
        lambda f: written(f, of(np.full((9, 9), np.nan, np.float32)), "x.tif").read_bytes(),
        "neither 8 nor 16 bits nor",
    ),
    "int.tif": (
        lambda f: written(f, of(np.full((9, 9), 70_000, np.int32)), "x.tif").read_bytes(),
        "neither 8 nor 16 bits nor",
    ),
}
