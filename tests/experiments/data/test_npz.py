"""Data sets from user-provided arrays."""

import numpy as np
import pytest
from npz_files import arrays

from experiments.config import UserError
from experiments.data import datasets


def test_npz_arrays_are_loaded_unchanged(stored):
    given = arrays((5, 4, 3), 3)
    path = stored(given | {"class_names": np.array(["ant", "bee", "cow", "dog"])})
    got = datasets.load(path, cache_dir="none", validation_fraction=0.25)
    assert got.class_names == ("ant", "bee", "cow", "dog") and got.name == path
    np.testing.assert_array_equal(got.test_images, given["test_images"])
    assert len(got.validation_labels) == 10 and got.train_labels.dtype == np.int32
    both = np.concatenate([got.train_images, got.validation_images])
    assert sorted(map(bytes, both)) == sorted(map(bytes, given["train_images"]))


def test_names_of_classes_may_be_bytes(stored):
    names = ("café", "thé", "eau")
    path = stored(arrays((5, 4), 3) | {"class_names": np.array([n.encode() for n in names])})
    assert datasets.load(path, cache_dir="none").class_names == names


def test_grey_arrays_and_classes_without_names(stored):
    got = datasets.load(stored(arrays((5, 4), 3)), cache_dir="none")
    assert got.image_shape == (5, 4, 1) and got.class_names == ("0", "1", "2")
    other = arrays((5, 4), 3)
    other["test_images"][0, 0, 0] ^= 1
    sources = [got.source, datasets.load(stored(other), cache_dir="none").source]
    assert sources[0].split(" from ")[1] == sources[1].split(" from ")[1]
    assert sources[0] != sources[1]


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda a: a.pop("test_labels"),
            "no array test_labels; there are train_images, train_labels",
        ),
        (
            lambda a: a.update(train_images=a["train_images"] - 9.0),
            "train_images are float64 from -9 to 246",
        ),
        (
            lambda a: a.update(test_images=a["test_images"] // 255),
            "test_images: the largest pixel is 1",
        ),
        (lambda a: a.update(train_labels=a["train_labels"] - 1), "train_labels contain -1"),
        (lambda a: a.update(test_labels=0.5 + a["test_labels"]), "test_labels contain 0.5"),
        (lambda a: a.update(train_labels=a["train_labels"].astype(object)), "of Python objects"),
        (
            lambda a: a.update({n: 0 * a[n] for n in ("train_labels", "test_labels")}),
            "one class only",
        ),
        (lambda a: a.update(train_labels=a["train_labels"][1:]), "40 train images and 39 labels"),
        (
            lambda a: a.update(test_images=a["test_images"][:, 1:]),
            "train and test images differ in",
        ),
        (lambda a: a.update(class_names=np.array(["x", "y"])), "train_labels contain 2, which"),
        (lambda a: a.update(class_names=np.array([{}], object)), "array of Python objects"),
        (lambda a: a.update(class_names=np.array("xyz")), "class_names have the shape (), not one"),
        (lambda a: a.update(class_names=np.array([["x", "y", "z"]])), "the shape (1, 3), not one"),
        (lambda a: a.update(class_names=np.array(["x", "y", "x", "z"])), "has 'x' 2 times"),
        (lambda a: a.update(class_names=np.array(["x", "\x1b[31m", "z"])), "not printable"),
        (lambda a: a.update(class_names=np.array(["x", "", "z"])), "has '', which is empty"),
        (
            lambda a: a.update(test_images=a["test_images"][:0], test_labels=a["test_labels"][:0]),
            "0 test images and 0 labels",
        ),
        (lambda a: a.update(train_images=a["train_images"][0]), "train_images are 5x4x3: fewer"),
        (dict.clear, "no array train_images; there are none"),
    ],
)
def test_invalid_arrays_are_refused(change, message, stored):
    values = arrays((5, 4, 3), 3)
    change(values)
    path = stored(values)
    with pytest.raises(UserError) as error:
        datasets.load(path, cache_dir="none")
    text = str(error.value)
    assert text.startswith(f"--dataset={path}: ") and message in text and "\n" not in text


def test_conversions_are_said_in_a_line_each(stored, capsys):
    given = arrays((5, 4), 3)
    changed = given | {
        "train_images": np.float32(given["train_images"]) / 255,
        "train_labels": np.array(["ant", "bee", "cow"])[given["train_labels"]],
        "test_labels": np.array(["ant", "bee", "dog"])[given["test_labels"]],
    }
    path = stored(changed)
    got = datasets.load(path, cache_dir="none", validation_fraction=0.0)
    np.testing.assert_array_equal(got.train_images[..., 0], given["train_images"])
    assert got.class_names == ("ant", "bee", "cow", "dog")
    assert capsys.readouterr().err.splitlines() == [
        f"--dataset={path}: train_images are float32, taken as 0 (black) to 1 (white)",
        f"--dataset={path}: labels are text, numbered in alphabetical order",
        f"--dataset={path}: class dog has no training images",
    ]
    path = stored(given | {name: given[name] + 1 for name in ("train_labels", "test_labels")})
    datasets.load(path, cache_dir="none")
    assert "class 0 has no training images: do labels start at 1?" in capsys.readouterr().err


def test_missing_or_invalid_npz_is_refused(tmp_path):
    with pytest.raises(UserError, match="x.npz: No such file"):
        datasets.load(str(tmp_path / "x.npz"), cache_dir="none")
    (tmp_path / "y.npz").write_text("hello")
    with pytest.raises(UserError, match="y.npz: "):
        datasets.load(str(tmp_path / "y.npz"), cache_dir="none")
