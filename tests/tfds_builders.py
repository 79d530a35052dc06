"""Small data sets that TFDS prepares for real, and tests without a network."""

import io
import shutil
import socket
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds
from helpers import ROOT
from tensorflow_datasets.core import community, constants

from experiments.config import UserError
from experiments.data import datasets
from experiments.data import tfds as tfds_module


def png(image):
    """Returns an image as a file, which TFDS stores unchanged: an array would need TensorFlow."""
    file = io.BytesIO()
    PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, format="PNG")
    file.seek(0)
    return file


class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.2.3")
    SHAPE, SIZES = (5, 4, 1), {"train": 20, "test": 6}
    NAMES = ("ant", "bee", "cow")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=self.SHAPE),
            "label": tfds.features.ClassLabel(names=self.NAMES),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.SIZES}

    def _generate_examples(self, split):
        for index, image in enumerate(pixels(split, self.SIZES[split], self.SHAPE)):
            yield index, {"image": png(image), "label": int(image.sum()) % 3}


def pixels(split, size, shape):
    return np.random.default_rng(len(split)).integers(0, 256, (size, *shape), np.uint8)


class TinyGrey(Tiny):
    """Grey images, train and test."""


class TinyColour(Tiny):
    """RGB images, and more than one batch of reading."""

    SHAPE, SIZES = (3, 2, 3), {"train": 1003, "test": 5}


class TinyMnist(Tiny):
    """Replaces MNIST."""

    SHAPE = (28, 28, 1)


class TinyRow(Tiny):
    """Images that NumPy would broadcast to others."""

    SHAPE = (1, 4, 3)


class TinyValidation(Tiny):
    SIZES = {"train": 9, "validation": 4}


class TinyBoth(Tiny):
    SIZES = {"validation": 3, "test": 4, "train": 9}


class TinyUntested(Tiny):
    SIZES = {"train": 4}


class TinyUntrained(Tiny):
    SIZES = {"test": 4, "validation": 4}


class TinyFetched(Tiny):
    """A data set that needs the network; the alphabetically first host is asked."""

    url_infos = {"https://b.invalid/x": None, "https://a.invalid/x": None}


class TinyBroken(Tiny):
    def _split_generators(self, dl_manager):
        raise OSError("404\nand more lines")


class TinyVaried(Tiny):
    SHAPE = (None, None, 3)


class TinyDeep(Tiny):
    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(5, 4, 1), dtype=np.uint16),
            "label": tfds.features.ClassLabel(num_classes=3),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))


class TinyUnlabelled(Tiny):
    def _info(self):
        features = {"image": tfds.features.Image(shape=(5, 4, 1)), "label": np.int64}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))


class TinyText(Tiny):
    def _info(self):
        features = {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=3)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))


PREPARED = (
    TinyGrey,
    TinyColour,
    TinyMnist,
    TinyRow,
    TinyValidation,
    TinyBoth,
    TinyUntested,
    TinyUntrained,
)


def prepare(folder, builders=PREPARED, file_format="array_record"):
    for builder in builders:
        builder(data_dir=folder).download_and_prepare(file_format=file_format)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """Returns a TFDS folder, which tests must not change."""
    folder = tmp_path_factory.mktemp("prepared")
    prepare(folder)
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """Hides the network and the user's own TFDS folder; returns the attempted accesses."""
    attempts = []

    def refuse(*args, **kwargs):
        attempts.append(args)
        raise OSError("no network in tests")

    monkeypatch.setattr(constants, "DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setattr(tfds_module, "network_problem", lambda url: f"no network: {url}")
    for owner, name in (
        (socket, "getaddrinfo"),
        (socket.socket, "connect"),
        (community, "community_register"),
    ):
        monkeypatch.setattr(owner, name, refuse)
    return attempts


@pytest.fixture
def no_download(monkeypatch):
    def fail(self, **kwargs):
        pytest.fail("a download was started")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)


def error_of(*args, **kwargs):
    """Returns the one-line message of the UserError that load raises."""
    with pytest.raises(UserError) as caught:
        datasets.load(*args, **kwargs)
    message = str(caught.value)
    assert message and message == message.strip() and len(message.splitlines()) == 1
    return message


def assert_same(first, second):
    assert first[:2] == second[:2] and first.class_names == second.class_names
    for one, other in zip(first[2:8], second[2:8], strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def run(program, *args):
    """Returns the standard output and error of a Python program run from the repository root."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def copy(source, target, name):
    """Copies the folder of a prepared version and gives the data set in it another name."""
    old = source.parent.name
    target.mkdir(parents=True)
    for path in source.iterdir():
        shutil.copy(path, target / path.name.replace(old, name))
    edit_info(target, lambda text: text.replace(old, name))
    return target


def edit_info(folder, change):
    """Changes the text of dataset_info.json."""
    (path,) = folder.rglob("dataset_info.json")
    text = path.read_text()
    assert change(text) != text
    path.write_text(change(text))
