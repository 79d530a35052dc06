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
            lambda a: a.update(train_images=a["train_images"] / 255),
            "train_images are float64, not ",
        ),
        (lambda a: a.update(train_labels=a["train_labels"] / 1), "train_labels are float64, not "),
        (lambda a: a.update(train_labels=a["train_labels"] - 1), "train labels that are no class"),
        (lambda a: a.update(train_labels=a["train_labels"][1:]), "40 train images and 39 labels"),
        (
            lambda a: a.update(test_images=a["test_images"][:, 1:]),
            "train and test images differ in",
        ),
        (lambda a: a.update(class_names=np.array(["x"])), "train labels that are no class"),
        (lambda a: a.update(class_names=np.array([{}], object)), "allow_pickle=False"),
        (
            lambda a: a.update(test_images=a["test_images"][:0], test_labels=a["test_labels"][:0]),
            "0 test images and 0 labels",
        ),
        (lambda a: a.update(train_images=a["train_images"][0]), "5 train images and 40 labels"),
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


def test_missing_or_invalid_npz_is_refused(tmp_path):
    with pytest.raises(UserError, match="x.npz: No such file"):
        datasets.load(str(tmp_path / "x.npz"), cache_dir="none")
    (tmp_path / "y.npz").write_text("hello")
    with pytest.raises(UserError, match="y.npz: "):
        datasets.load(str(tmp_path / "y.npz"), cache_dir="none")
