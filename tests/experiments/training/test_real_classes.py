"""Networks with default settings learn few and many classes of real images.

They need arrays that are not part of the repository: a folder with mnist.npz, fashion_mnist.npz
and cifar10.npz, written as docs/own_images.md says, which the environment variable
CAPSJAX_TEST_ARRAYS names.
"""

import dataclasses
import os
import pathlib

import numpy as np
import pytest
from helpers import MNIST, metrics_rows, train

FOLDER = os.environ.get("CAPSJAX_TEST_ARRAYS", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER, reason="CAPSJAX_TEST_ARRAYS names no folder of arrays"),
]
SPLITS = ("train", "test")


def load(name):
    path = pathlib.Path(FOLDER) / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"there is no {path.name} in CAPSJAX_TEST_ARRAYS")
    with np.load(path) as found:
        return {key: found[key] for key in found}


def only(found, classes, white=False):
    """Returns the examples of some classes, as black on white if asked for."""
    chosen = {}
    for split in SPLITS:
        images, labels = found[f"{split}_images"], found[f"{split}_labels"]
        rows = np.isin(labels, classes)
        chosen[f"{split}_images"] = 255 - images[rows] if white else images[rows]
        chosen[f"{split}_labels"] = np.searchsorted(classes, labels[rows])
    return chosen


def two_digit_numbers(found, train=20_000, test=4_000):
    """Returns the numbers 00 to 99, two digits alongside each other."""
    rng = np.random.default_rng(0)
    numbers = {}
    for split, count in zip(SPLITS, (train, test)):
        images, labels = found[f"{split}_images"], found[f"{split}_labels"]
        left, right = rng.integers(0, len(labels), (2, count))
        numbers[f"{split}_images"] = np.concatenate([images[left], images[right]], axis=2)
        numbers[f"{split}_labels"] = 10 * labels[left].astype(int) + labels[right]
    return numbers


def train_on(path, tmp_path, **changes):
    return train(dataclasses.replace(MNIST, dataset=path, workdir=str(tmp_path / "run"), **changes))


@pytest.mark.parametrize("white", [False, True], ids=["black", "white"])
@pytest.mark.parametrize(
    "name, classes, limit",
    [
        ("mnist", (3, 8), 5),
        ("mnist", (4, 9), 5),
        ("mnist", (7, 9), 5),
        ("fashion_mnist", (0, 3), 15),  # T-shirt and dress
        ("fashion_mnist", (7, 9), 15),  # sneaker and ankle boot
        ("fashion_mnist", (0, 6), 30),  # T-shirt and shirt: the hardest pair
    ],
    ids=str,
)
def test_two_classes_in_three_epochs(name, classes, limit, white, stored, tmp_path):
    path = stored(only(load(name), classes, white))
    summary = train_on(path, tmp_path, epochs=3)
    print(f"{name} {classes} white={white}: {summary['test_error']:.2f}% test error")
    assert summary["test_error"] < limit


@pytest.mark.parametrize("classes, epochs, limit", [((3, 5), 12, 45), ((0, 8), 6, 35)], ids=str)
def test_two_classes_of_photographs(classes, epochs, limit, stored, tmp_path):
    """Cat and dog, airplane and ship: 2,000 images of each pair, 14 steps in an epoch.

    Without --input_norm=image, their default, the first steps of Adam saturate the capsules. Cats
    and dogs take twice the steps, because they differ less; so they do for a CNN.
    """
    path = stored(only(load("cifar10"), classes))
    summary = train_on(path, tmp_path, epochs=epochs)
    print(f"cifar10 {classes}: {summary['test_error']:.2f}% test error")
    assert summary["test_error"] < limit


def test_threes_and_eights_in_six_epochs(stored, tmp_path):
    path = stored(only(load("mnist"), (3, 8)))
    summary = train_on(path, tmp_path, epochs=6, train_examples=4_000)
    print(f"3 and 8, 4,000 examples: {summary['test_error']:.2f}% test error")
    assert summary["test_error"] <= 2


def test_a_hundred_classes_learn_from_the_first_epoch_on(stored, tmp_path):
    path = stored(two_digit_numbers(load("mnist")))
    summary = train_on(path, tmp_path, preset="small", epochs=3)
    rows = metrics_rows(tmp_path / "run")
    errors = [row["validation_error"] for row in rows if "validation_error" in row]
    print(f"a hundred classes: {errors}, {summary['test_error']:.2f}% test error")
    assert errors[0] < 90 and errors[-1] < errors[0]
