"""What labels of user-provided arrays mean: converted, or refused with the cure."""

import numpy as np
import pytest

from experiments.data.labels import absent_classes, as_labels

WHOLE = np.array([2, 0, 1, 2])
TEXT = np.array(["cow", "ant", "bee", "cow"])


def convert(train, test=None, names=None):
    names = None if names is None else np.array(names)
    given = {"train_labels": train, "test_labels": train[:2] if test is None else test}
    (train, test), names, notes = as_labels(given, names)
    assert train.dtype == test.dtype == np.int32 and train.ndim == test.ndim == 1
    return train.tolist(), names.tolist(), notes


@pytest.mark.parametrize(
    "given, names, said",
    [
        (WHOLE, "012", None),
        (WHOLE.astype(np.uint8), "012", None),
        (WHOLE[:, None], "012", None),
        (WHOLE / 1, "012", None),
        (np.float32(WHOLE)[:, None], "012", None),
        (np.eye(3)[WHOLE], "012", "train_labels are one-hot"),
        (np.eye(4, dtype=bool)[WHOLE], "0123", "one-hot"),
        (np.eye(4, dtype=np.uint8)[WHOLE], "0123", "one-hot"),
        (TEXT, ["ant", "bee", "cow"], "alphabetical order"),
        (TEXT.astype(bytes)[:, None], ["ant", "bee", "cow"], "alphabetical order"),
    ],
)
def test_labels_that_are_clear_are_taken(given, names, said):
    got, found, notes = convert(given)
    assert got == WHOLE.tolist() and found == list(names)
    assert bool(notes) == bool(said) and (not said or said in notes[0])


def test_text_follows_class_names_and_both_splits():
    got, names, notes = convert(TEXT, np.array(["dog"]), ["cow", "dog", "ant", "bee"])
    assert got == [0, 2, 3, 0] and names == ["cow", "dog", "ant", "bee"]
    assert notes == ["labels are text, numbered in the order of class_names"]
    assert convert(TEXT, np.array(["bat"]))[1] == ["ant", "bat", "bee", "cow"]
    assert convert(WHOLE > 0)[:2] == ([1, 0, 1, 1], ["0", "1"])


@pytest.mark.parametrize(
    "given, message",
    [
        (WHOLE - 1, "train_labels contain -1, which is no class: labels are 0 to 1"),
        (WHOLE + 0.5, "train_labels contain 2.5; labels are integers"),
        (WHOLE * np.nan, "train_labels contain nan"),
        (WHOLE + 0j, "train_labels are complex128"),
        (np.eye(3)[WHOLE] * 0.9, r"not one-hot.*train_labels.argmax\(axis=1\)"),
        (np.eye(3)[WHOLE] + np.eye(3)[[0, 0, 0, 1]], "not one-hot"),
        (np.maximum(np.eye(3)[WHOLE], np.eye(3)[[0, 0, 0, 1]]), "name several classes"),
        (np.zeros((4, 3)), "or none, for an image"),
        (np.stack([TEXT, TEXT], 1), "<U3 of two axes"),
        (WHOLE.reshape(1, 2, 2), "train_labels are 1x2x2, not one label for each image"),
        (np.array([0, 7, 123456, 0]), r"up to 123456 but have 3 .*np.unique\(labels, return_inv"),
    ],
)
def test_unclear_labels_are_refused_with_the_cure(given, message):
    with pytest.raises(ValueError, match=message) as error:
        convert(given)
    assert "\n" not in str(error.value)


def test_labels_that_do_not_fit_class_names():
    with pytest.raises(ValueError, match="contain 3.* 3 class_names .*start at 1[?] subtract 1"):
        convert(WHOLE + 1, names=["a", "b", "c"])
    with pytest.raises(ValueError, match="contain 2, which is no class: 2 class_names"):
        convert(WHOLE, names=["a", "b"])
    with pytest.raises(ValueError, match="'cow' is not among class_names"):
        convert(TEXT, names=["ant", "bee"])
    with pytest.raises(ValueError, match="some are text, others numbers"):
        convert(TEXT, WHOLE)


def test_absent_classes_in_one_line():
    assert absent_classes(WHOLE, ("a", "b", "c")) == ""
    assert absent_classes(WHOLE[:0], ("a", "b", "c")) == ""  # a saved run without its data
    one = "class 0 has no training images: do labels start at 1? subtract 1"
    assert absent_classes(WHOLE + 1, tuple("0123")) == one
    assert absent_classes(WHOLE, tuple("abcd")) == "class d has no training images"
    many = absent_classes(WHOLE, tuple("abcdefghijklmnop"))
    assert many == "13 classes (d, e, f, g, h, i, j, k, l, m, ...) have no training images"
