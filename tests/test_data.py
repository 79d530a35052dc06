"""Data sets: small ones that TFDS prepares for real, the digits, the cache, and being offline."""

import collections
import contextlib
import errno
import hashlib
import http.server
import importlib.util
import io
import pathlib
import shutil
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import PIL.Image
import pytest
import sklearn.datasets
import tensorflow_datasets as tfds
from helpers import ROOT
from tensorflow_datasets.core import community, constants

from experiments.config import UserError
from experiments.data import datasets

network_problem = datasets.network_problem


def png(image):
    """An image as a file, which TFDS stores as it is: from an array it needs TensorFlow."""
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
    """To be put in MNIST's place."""

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
    """One that would come from the network; its first host in the alphabet is asked."""

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
    TinyGrey, TinyColour, TinyMnist, TinyRow, TinyValidation, TinyBoth, TinyUntested,
    TinyUntrained)


def prepare(folder, builders=PREPARED, file_format="array_record"):
    for builder in builders:
        builder(data_dir=folder).download_and_prepare(file_format=file_format)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A TFDS folder; not to be changed."""
    folder = tmp_path_factory.mktemp("prepared")
    prepare(folder)
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """Neither the network nor the user's own TFDS folder is seen. Gives the attempts."""
    attempts = []

    def refuse(*args, **kwargs):
        attempts.append(args)
        raise OSError("no network in tests")

    monkeypatch.setattr(constants, "DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setattr(datasets, "_network_problem", lambda url: f"no network: {url}")
    for owner, name in ((socket, "getaddrinfo"), (socket.socket, "connect"),
                        (community, "community_register")):
        monkeypatch.setattr(owner, name, refuse)
    return attempts


@pytest.fixture
def no_download(monkeypatch):
    def fail(self, **kwargs):
        pytest.fail("a download was started")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)


def error_of(*args, **kwargs):
    """The message, of one line, of the UserError that load raises."""
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
    """The standard output and error of a Python program run from the repository root."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *map(str, args)],
        cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


# Reading


@pytest.mark.parametrize("builder", [TinyGrey, TinyColour])
def test_reads_what_tfds_stores_in_its_order(builder, prepared, tmp_path, capsys):
    dataset = datasets.load(
        builder.name, data_dir=str(prepared), cache_dir=tmp_path, validation_fraction=0)
    assert dataset.name == builder.name
    assert dataset.source == f"tfds {builder.name} 1.2.3 from {prepared}"
    assert dataset.class_names == builder.NAMES and dataset.num_classes == 3
    assert dataset.image_shape == builder.SHAPE
    for split, images, labels in (
            ("train", dataset.train_images, dataset.train_labels),
            ("test", dataset.test_images, dataset.test_labels)):
        assert images.dtype == np.uint8 and labels.dtype == np.int32
        stored = tfds.data_source(builder.name, split=split, data_dir=prepared, download=False)
        assert len(stored) == len(images) == len(labels) == builder.SIZES[split]
        for index in range(len(stored)):
            np.testing.assert_array_equal(images[index], stored[index]["image"])
            assert labels[index] == stored[index]["label"]
        # And TFDS, which shuffles, stores what it was given.
        written = pixels(split, builder.SIZES[split], builder.SHAPE)
        assert collections.Counter(i.tobytes() for i in images) == collections.Counter(
            i.tobytes() for i in written)
        np.testing.assert_array_equal(labels, images.sum((1, 2, 3), dtype=int) % 3)
    out, err = capsys.readouterr()
    assert not out
    assert f"reading {builder.name} from {prepared}" in err and f"{builder.name}.npz" in err


def test_data_dir_may_be_relative_to_home(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(prepared.parent))
    dataset = datasets.load("tiny_grey", data_dir=f"~/{prepared.name}/", cache_dir="~/cache")
    assert dataset.source.endswith(f" from {prepared}")
    assert (prepared.parent / "cache/datasets/tiny_grey.npz").exists()


def test_reads_the_default_folder_of_tfds(prepared, tmp_path, monkeypatch, no_download):
    monkeypatch.setattr(constants, "DATA_DIR", str(prepared))
    dataset = datasets.load("tiny_grey", cache_dir=tmp_path)
    assert dataset.source == f"tfds tiny_grey 1.2.3 from {prepared}"


def test_reads_a_version_and_a_data_set_without_its_code(prepared, tmp_path):
    shutil.copytree(prepared / "tiny_grey", tmp_path / "tiny_grey")
    read = f"""if True:
        from experiments import data
        for name in ("tiny_grey", "tiny_grey:1.2.3"):
            for _ in range(2):  # from TFDS, from the cache
                dataset = data.load(name, data_dir={str(tmp_path)!r}, cache_dir={str(tmp_path)!r})
                print(dataset.name, dataset.source, len(dataset.train_images), sep="; ")"""
    out, err = run(read)
    assert out.splitlines() == [
        f"{name}; tfds {name} 1.2.3 from {tmp_path}; 19"
        for name in ("tiny_grey", "tiny_grey:1.2.3") for _ in range(2)]
    assert err.count("reading") == 2


def test_validation_split_of_tfds_is_the_test_set_where_there_is_no_other(prepared, tmp_path):
    dataset = datasets.load("tiny_validation", data_dir=prepared, cache_dir=tmp_path)
    expected = pixels("validation", 4, (5, 4, 1))
    assert {i.tobytes() for i in dataset.test_images} == {i.tobytes() for i in expected}
    dataset = datasets.load("tiny_both", data_dir=prepared, cache_dir=tmp_path)
    expected = pixels("test", 4, (5, 4, 1))
    assert {i.tobytes() for i in dataset.test_images} == {i.tobytes() for i in expected}


@pytest.mark.parametrize("name", ["tiny_untested", "tiny_untrained"])
def test_missing_splits(name, prepared, tmp_path):
    assert "no split 'train'" in error_of(name, data_dir=prepared, cache_dir=tmp_path)


@pytest.mark.parametrize("name", ["tiny_varied", "tiny_deep", "tiny_unlabelled", "tiny_text"])
def test_other_kinds_of_data_are_refused_before_a_download(name, tmp_path, no_download):
    for kwargs in ({}, {"data_dir": str(tmp_path)}):
        message = error_of(name, cache_dir=tmp_path, **kwargs)
        assert name in message and "8-bit images of one size with a class label" in message


def test_tfrecord_files_are_read_without_tensorflow(prepared, tmp_path):
    copy(prepared / "tiny_grey" / "1.2.3", tmp_path / "tiny_copy" / "1.2.3", "tiny_copy")
    arrays = datasets.load("tiny_copy", data_dir=tmp_path, cache_dir=tmp_path / "a")
    put_tfrecords(tmp_path / "tiny_copy")
    for path in tmp_path.rglob("*array_record*"):
        path.unlink()
    assert_same(arrays, datasets.load("tiny_copy", data_dir=tmp_path, cache_dir=tmp_path / "b"))


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="needs TensorFlow")
def test_tfrecord_files_hold_the_same_in_the_same_order(prepared, tmp_path):
    """In another process: TensorFlow is slow to import and has no business in this one."""
    run("import sys; from tests import test_data as t; "
        "t.prepare(sys.argv[1], [t.TinyGrey], 'tfrecord')", tmp_path)
    assert list(tmp_path.rglob("*.tfrecord*")) and not list(tmp_path.rglob("*.array_record*"))
    records = datasets.load("tiny_grey", data_dir=tmp_path, cache_dir=tmp_path / "a")
    arrays = datasets.load("tiny_grey", data_dir=prepared, cache_dir=tmp_path / "b")
    assert_same(records, arrays._replace(source=records.source))


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
    path, = folder.rglob("dataset_info.json")
    text = path.read_text()
    assert change(text) != text
    path.write_text(change(text))


def truncate(folder):
    path, = folder.rglob("*train*record*")
    path.write_bytes(path.read_bytes()[:-100])


def put_tfrecords(folder, left_out=0, cut=None):
    """Writes the records as TFRecord: each between its length and checksums, which nobody reads."""
    info, = folder.rglob("dataset_info.json")
    for split in ("train", "test"):
        records = tfds.builder_from_directory(info.parent).as_data_source(split).data_source
        raw = b"".join(
            len(record).to_bytes(8, "little") + bytes(4) + record + bytes(4)
            for record in (records[i] for i in range(len(records) - left_out)))
        name = f"{folder.name}-{split}.tfrecord-00000-of-00001"
        (info.parent / name).write_bytes(raw[:cut])
    edit_info(folder, lambda text: text.replace("array_record", "tfrecord"))


def edit_features(folder, old, new):
    path, = folder.rglob("features.json")
    for labels in folder.rglob("label.labels.txt"):
        labels.unlink()
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


DAMAGES = {
    "truncated": truncate,
    "missing": lambda folder: [path.unlink() for path in folder.rglob("*train*")],
    "parquet": lambda folder: edit_info(folder, lambda t: t.replace("array_record", "parquet")),
    "information": lambda folder: edit_info(folder, lambda t: t[:-9]),
    "shape": lambda folder: edit_features(folder, '"5"', '"1"'),
    "classes": lambda folder: edit_features(folder, '"numClasses": "3"', '"numClasses": "1"'),
    "tfrecord, one missing": lambda folder: put_tfrecords(folder, left_out=1),
    "tfrecord, empty": lambda folder: put_tfrecords(folder, cut=0),
    "tfrecord, cut short": lambda folder: put_tfrecords(folder, cut=-20),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_prepared_data(damage, prepared, tmp_path):
    # Under a name without code, so that the files alone say what they hold.
    copy(prepared / "tiny_grey" / "1.2.3", tmp_path / "tiny_copy" / "1.2.3", "tiny_copy")
    assert len(datasets.load("tiny_copy", data_dir=tmp_path, cache_dir=tmp_path / "a").test_labels) == 6
    DAMAGES[damage](tmp_path / "tiny_copy")
    message = error_of("tiny_copy", data_dir=tmp_path, cache_dir=tmp_path / "b")
    assert "tiny_copy" in message
    assert not (tmp_path / "b").exists()


def test_images_of_another_shape_are_not_broadcast(prepared, tmp_path):
    copy(prepared / "tiny_row" / "1.2.3", tmp_path / "tiny_copy" / "1.2.3", "tiny_copy")
    edit_features(tmp_path, '"1"', '"5"')
    message = error_of("tiny_copy", data_dir=tmp_path, cache_dir=tmp_path)
    assert "(1, 4, 3)" in message and "(5, 4, 3)" in message


# The digits


def enlarged(small):
    """[N, 8, 8] of 0..16 as [N, 28, 28] of 0..255: bilinear, in whole numbers, halves up."""
    def neighbours(out):
        place = min(max(4 * out - 5, 0), 7 * 14)  # (out + 1/2) / 3.5 - 1/2, in fourteenths
        low = place // 14
        return low, min(low + 1, 7), place % 14

    result = np.zeros((len(small), 28, 28), np.uint8)
    small = small.astype(np.int64)
    for y in range(28):
        top, bottom, down = neighbours(y)
        for x in range(28):
            left, right, across = neighbours(x)
            upper = (14 - across) * small[:, top, left] + across * small[:, top, right]
            lower = (14 - across) * small[:, bottom, left] + across * small[:, bottom, right]
            total = (14 - down) * upper + down * lower
            result[:, y, x] = (2 * 255 * total + 196 * 16) // (2 * 196 * 16)
    return result


def test_digits_are_scikit_learns_enlarged(tmp_path):
    dataset = datasets.load("digits", cache_dir=tmp_path / "cache", validation_fraction=0)
    assert dataset.name == "digits" and "scikit-learn" in dataset.source
    assert dataset.class_names == tuple("0123456789") and dataset.num_classes == 10
    assert dataset.image_shape == (28, 28, 1)
    assert dataset.train_images.shape == (1437, 28, 28, 1) and len(dataset.train_labels) == 1437
    assert dataset.test_images.shape == (360, 28, 28, 1) and len(dataset.test_labels) == 360
    original = sklearn.datasets.load_digits()
    expected = collections.Counter(
        (image.tobytes(), label)
        for image, label in zip(enlarged(original.images), original.target.tolist(), strict=True))
    found = collections.Counter(
        (image.tobytes(), label)
        for images, labels in ((dataset.train_images, dataset.train_labels),
                               (dataset.test_images, dataset.test_labels))
        for image, label in zip(images, labels.tolist(), strict=True))
    assert found == expected
    assert dataset.train_images.dtype == np.uint8 and dataset.train_labels.dtype == np.int32
    assert dataset.test_images.dtype == np.uint8 and dataset.test_labels.dtype == np.int32
    again = datasets.load("digits", cache_dir=tmp_path / "cache", validation_fraction=0)
    assert_same(again, dataset)


def test_digits_are_computed_once(tmp_path, monkeypatch):
    dataset = datasets.load("digits", cache_dir=tmp_path)
    monkeypatch.setattr(sklearn.datasets, "load_digits", None)
    assert_same(datasets.load("digits", cache_dir=tmp_path), dataset)
    with pytest.raises(TypeError):
        datasets.load("digits", cache_dir=tmp_path / "other")


def test_digits_test_set_is_stratified_and_stays_the_same(tmp_path):
    dataset = datasets.load("digits", cache_dir=tmp_path)
    every = np.bincount(sklearn.datasets.load_digits().target)
    tested = np.bincount(dataset.test_labels)
    assert np.abs(tested - every * 360 / 1797).max() < 1
    assert dataset.test_labels[:10].tolist() == [7, 6, 3, 7, 7, 3, 2, 8, 9, 3]
    assert len(dataset.validation_labels) == 72 and len(dataset.train_labels) == 1365


# The validation split


@pytest.mark.parametrize("fraction, held_out", [(0, 0), (0.05, 1), (0.26, 5), (0.95, 19)])
def test_splits_are_disjoint_complete_and_the_same_for_all(fraction, held_out, prepared, tmp_path):
    kwargs = {"data_dir": prepared, "cache_dir": tmp_path}
    whole = datasets.load("tiny_grey", validation_fraction=0, **kwargs)
    np.random.seed(1)
    dataset = datasets.load("tiny_grey", validation_fraction=fraction, **kwargs)
    np.random.seed(2)
    assert_same(dataset, datasets.load("tiny_grey", validation_fraction=fraction, **kwargs))
    assert dataset.validation_images.shape == (held_out, 5, 4, 1)
    assert dataset.validation_images.dtype == np.uint8
    assert dataset.validation_labels.shape == (held_out,)
    assert dataset.validation_labels.dtype == np.int32

    def rows(images, labels):
        return [(i.tobytes(), k) for i, k in zip(images, labels.tolist(), strict=True)]

    train = rows(dataset.train_images, dataset.train_labels)
    validation = rows(dataset.validation_images, dataset.validation_labels)
    every = rows(whole.train_images, whole.train_labels)
    assert len(set(every)) == 20
    assert not set(train) & set(validation) and sorted(train + validation) == sorted(every)
    assert train == [row for row in every if row in set(train)]  # the order is kept
    np.testing.assert_array_equal(dataset.test_images, whole.test_images)
    np.testing.assert_array_equal(dataset.test_labels, whole.test_labels)


def test_validation_examples_never_change():
    """With the split, every published validation error would change its meaning."""
    arrays = {
        "train_images": np.zeros((60000, 1, 1, 1), np.uint8),
        "train_labels": np.arange(60000, dtype=np.int32),
        "test_images": np.zeros((1, 1, 1, 1), np.uint8), "test_labels": np.zeros(1, np.int32),
        "class_names": np.array(["a"]), "source": np.array("s"),
    }
    chosen = datasets.hold_out_validation("n", arrays, 0.05).validation_labels
    assert len(chosen) == 3000
    assert chosen[:8].tolist() == [24, 41, 58, 99, 101, 127, 153, 155]
    assert int(chosen.sum()) == 91023990


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, float("nan"), 0.99])
def test_impossible_validation_fractions(fraction, prepared, tmp_path):
    message = error_of(
        "tiny_grey", data_dir=prepared, cache_dir=tmp_path, validation_fraction=fraction)
    assert str(fraction) in message


# The cache

BLOCKED = """if True:
    import sys
    for name in ("tensorflow_datasets", "tensorflow", "array_record", "requests", "jax"):
        sys.modules[name] = None  # importing it raises ImportError
    """


def test_cache_equals_its_source_and_needs_no_tfds(prepared, tmp_path):
    first = datasets.load("tiny_grey", data_dir=prepared, cache_dir=tmp_path)
    assert [p.name for p in tmp_path.rglob("*")] == ["datasets", "tiny_grey.npz"]
    out, err = run(BLOCKED + """
    import hashlib
    from experiments import data
    for data_dir in (None, sys.argv[1]):
        dataset = data.load("tiny_grey", data_dir=data_dir, cache_dir=sys.argv[2])
        print(dataset.name, dataset.source, dataset.class_names,
              hashlib.sha256(b"".join(a.tobytes() for a in dataset[2:8])).hexdigest())""",
                   prepared, tmp_path)
    one, other = out.splitlines()
    assert one == other and not err
    digest = hashlib.sha256(b"".join(a.tobytes() for a in first[2:8])).hexdigest()
    assert one == f"{first.name} {first.source} {first.class_names} {digest}"
    assert_same(first, datasets.load("tiny_grey", cache_dir=tmp_path))


def test_cache_of_another_folder_is_read_anew(prepared, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(prepared / "tiny_grey", other / "tiny_grey")
    cache = tmp_path / "cache"
    first = datasets.load("tiny_grey", data_dir=prepared, cache_dir=cache)
    second = datasets.load("tiny_grey", data_dir=other, cache_dir=cache)
    assert second.source == f"tfds tiny_grey 1.2.3 from {other}"
    assert_same(first, second._replace(source=first.source))
    assert capsys.readouterr().err.count("reading") == 2
    # Whatever it holds serves those who name no folder, and those who name this one.
    assert datasets.load("tiny_grey", cache_dir=cache).source == second.source
    assert datasets.load("tiny_grey", data_dir=other, cache_dir=cache).source == second.source
    assert not capsys.readouterr().err


def cached_arrays(name="mnist"):
    return {
        "train_images": np.arange(80, dtype=np.uint8).reshape(10, 2, 4, 1),
        "train_labels": np.arange(10, dtype=np.int32) % 3,
        "test_images": np.ones((4, 2, 4, 1), np.uint8), "test_labels": np.zeros(4, np.int32),
        "class_names": np.array(["a", "b", "c"]), "source": np.array(f"tfds {name} 3.0.1 from /d"),
    }


def write_cache(folder, name="mnist", **changes):
    path = folder / "datasets" / f"{name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = cached_arrays(name) | changes
    np.savez(path, **{key: array for key, array in arrays.items() if array is not None})
    return path


GOOD = cached_arrays()
CORRUPTIONS = {
    "missing key": {"test_labels": None},
    "missing names": {"class_names": None},
    "missing source": {"source": None},
    "images of rank 3": {"train_images": GOOD["train_images"][..., 0]},
    "labels of rank 2": {"train_labels": GOOD["train_labels"][:, None]},
    "labels of rank 0": {"test_labels": np.int32(0)},
    "float images": {"test_images": GOOD["test_images"].astype(np.float32)},
    "wide labels": {"test_labels": GOOD["test_labels"].astype(np.int64)},
    "fewer labels": {"train_labels": GOOD["train_labels"][:-1]},
    "fewer images": {"test_images": GOOD["test_images"][:-1]},
    "no examples": {"test_images": GOOD["test_images"][:0], "test_labels": GOOD["test_labels"][:0]},
    "negative label": {"train_labels": GOOD["train_labels"] - 1},
    "label beyond": {"test_labels": GOOD["test_labels"] + 3},
    "two shapes": {"test_images": GOOD["test_images"][:, :1]},
    "objects": {"class_names": np.array(["a", "b", "c"], object)},
    "object images": {"train_images": GOOD["train_images"].astype(object)},
    "number names": {"class_names": np.arange(3)},
    "one name": {"class_names": np.array("abc")},
    "another data set": {"source": np.array("tfds fashion_mnist 3.0.1 from /d")},
    "two sources": {"source": np.array(["tfds mnist 3.0.1 from /d"])},
}
DAMAGED_BYTES = {
    "truncated": lambda raw: raw[: len(raw) // 2],
    "short": lambda raw: raw[:-1],
    "empty": lambda raw: b"",
    "text": lambda raw: b"not a cache at all\n",
    "flipped": lambda raw: raw[:200] + bytes([raw[200] ^ 255]) + raw[201:],
    "a pickle": lambda raw: b"\x80\x04K\x01.",
    "one array": lambda raw: b"\x93NUMPY\x01\x00\x46\x00{'descr': '|u1', 'fortran_order': False,"
                             b" 'shape': (1,), }       \n\x00",
}


def assert_corrupt(path, folder):
    before = path.read_bytes()
    # Also 'auto' has no business with the digits when MNIST was meant to be there.
    for name in ("mnist", "auto"):
        for data_dir in (None, "/d", "/elsewhere"):
            message = error_of(name, data_dir=data_dir, cache_dir=folder)
            assert str(path) in message and "delete" in message
    assert path.read_bytes() == before


def test_intact_cache_is_used(tmp_path):
    write_cache(tmp_path)
    for name in ("mnist", "auto"):
        dataset = datasets.load(name, cache_dir=tmp_path, validation_fraction=0)
        assert dataset.name == "mnist" and dataset.source == "tfds mnist 3.0.1 from /d"
        np.testing.assert_array_equal(dataset.train_images, GOOD["train_images"])


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_cache_with_wrong_contents(corruption, tmp_path, no_download):
    assert_corrupt(write_cache(tmp_path, **CORRUPTIONS[corruption]), tmp_path)


@pytest.mark.parametrize("damage", DAMAGED_BYTES)
def test_cache_with_damaged_bytes(damage, tmp_path, no_download):
    path = write_cache(tmp_path)
    path.write_bytes(DAMAGED_BYTES[damage](path.read_bytes()))
    assert_corrupt(path, tmp_path)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def test_cache_runs_no_code(tmp_path):
    trace = tmp_path / "trace"
    path = write_cache(tmp_path, train_labels=np.array([Payload(trace)]))
    with np.load(path, allow_pickle=True) as file:
        assert file["train_labels"].size and trace.exists()
    trace.unlink()
    assert_corrupt(path, tmp_path)
    assert not trace.exists()


def test_every_flipped_byte_is_noticed_or_harmless(tmp_path):
    """Nothing but the intact arrays is ever returned."""
    path = write_cache(tmp_path)
    raw, intact = path.read_bytes(), datasets.load("mnist", cache_dir=tmp_path)
    for place in range(0, len(raw), 37):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 0x55]) + raw[place + 1:])
        with contextlib.suppress(UserError):
            assert_same(intact, datasets.load("mnist", cache_dir=tmp_path))


def test_cache_folder_that_cannot_be_written(prepared, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("in the way")
    dataset = datasets.load("tiny_grey", data_dir=prepared, cache_dir=file)
    assert len(dataset.test_images) == 6
    line = capsys.readouterr().err.splitlines()[-1]
    assert "without a cache" in line and str(file) in line
    assert file.read_text() == "in the way"


@pytest.mark.parametrize("raised", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_interrupted_writing_leaves_the_old_cache(raised, prepared, tmp_path, monkeypatch, capsys):
    def savez(file, **arrays):
        pathlib.Path(file).write_bytes(b"half of it")
        raise raised

    monkeypatch.setattr(np, "savez", savez)
    stops = isinstance(raised, KeyboardInterrupt)
    for cache in ("new", "old"):
        if cache == "old":
            monkeypatch.undo()
            before = write_cache(tmp_path / cache, "tiny_grey").read_bytes()
            monkeypatch.setattr(np, "savez", savez)
        with pytest.raises(KeyboardInterrupt) if stops else contextlib.nullcontext():
            datasets.load("tiny_grey", data_dir=prepared, cache_dir=tmp_path / cache)
        assert stops or "No space left" in capsys.readouterr().err
    assert not list((tmp_path / "new" / "datasets").iterdir())
    path, = (tmp_path / "old" / "datasets").iterdir()
    assert path.name == "tiny_grey.npz" and path.read_bytes() == before


def test_interrupted_reading_leaves_no_cache(prepared, tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(tfds.features.FeaturesDict, "deserialize_example_np", interrupt)
    with pytest.raises(KeyboardInterrupt):
        datasets.load("tiny_grey", data_dir=prepared, cache_dir=tmp_path)
    assert not list(tmp_path.rglob("*.npz"))


# Without network, TFDS or TensorFlow


def test_offline_is_an_error_for_a_name_and_digits_for_auto(tmp_path, capsys, no_download):
    message = error_of("mnist", cache_dir=tmp_path)
    assert message.startswith(f"mnist is not prepared in {tmp_path / 'tfds'}, and no network: ")
    assert "--data_dir" in message and "--dataset=digits" in message
    assert not capsys.readouterr().err
    dataset = datasets.load("auto", cache_dir=tmp_path)
    assert_same(dataset, datasets.load("digits", cache_dir=tmp_path))
    warning, = capsys.readouterr().err.splitlines()
    assert warning.startswith("WARNING: ") and "digits instead of MNIST" in warning
    assert message in warning
    assert [path.name for path in tmp_path.rglob("*.npz")] == ["digits.npz"]


def test_auto_takes_prepared_mnist(prepared, tmp_path, monkeypatch):
    """Given or in the default folder."""
    folder = copy(prepared / "tiny_mnist" / "1.2.3", tmp_path / "mnist" / "3.0.1", "mnist")
    edit_info(folder, lambda text: text.replace("1.2.3", "3.0.1"))
    given = datasets.load("auto", data_dir=tmp_path, cache_dir=tmp_path / "a")
    monkeypatch.setattr(constants, "DATA_DIR", str(tmp_path))
    default = datasets.load("auto", cache_dir=tmp_path / "b")
    assert_same(given, default)
    assert given.name == "mnist" and given.image_shape == (28, 28, 1)
    assert given.source == f"tfds mnist 3.0.1 from {tmp_path}"


@pytest.mark.parametrize("name", ["mnist", "auto", "tiny_grey"])
def test_given_folder_without_the_data_set(name, prepared, tmp_path, no_download, monkeypatch):
    """Not even prepared elsewhere, and not even with a network."""
    monkeypatch.setattr(datasets, "_network_problem", lambda url: "")
    monkeypatch.setattr(constants, "DATA_DIR", str(prepared))
    (tmp_path / "some" / "mnist_old").mkdir(parents=True)
    message = error_of(name, data_dir=tmp_path / "some", cache_dir=tmp_path / "cache")
    assert f"not prepared in {tmp_path / 'some'}" in message and "'mnist_old'" in message
    wanted = "mnist" if name == "auto" else name
    assert str(tmp_path / "some" / wanted) in message and "--data_dir" in message
    message = error_of(name, data_dir=tmp_path / "none", cache_dir=tmp_path / "cache")
    assert str(tmp_path / "none") in message and "no such folder" in message
    assert not (tmp_path / "none").exists() and len(list(tmp_path.iterdir())) == 1


def test_prepares_in_the_default_folder(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(datasets, "_network_problem", lambda url: asked.append(url) or "")
    dataset = datasets.load("tiny_fetched", cache_dir=tmp_path)
    assert asked == ["https://a.invalid/x"]
    assert dataset.source == f"tfds tiny_fetched 1.2.3 from {tmp_path / 'tfds'}"
    assert list((tmp_path / "tfds").rglob("*array_record*"))
    out, err = capsys.readouterr()
    assert not out and "preparing tiny_fetched" in err
    datasets.load("tiny_fetched", cache_dir=tmp_path / "new")
    assert len(asked) == 1


def test_offline_is_found_out_before_a_download(tmp_path, no_download):
    assert "no network: https://a.invalid/x;" in error_of("tiny_fetched", cache_dir=tmp_path)


def test_failed_download(tmp_path):
    message = error_of("tiny_broken", cache_dir=tmp_path)
    assert "tiny_broken" in message and "404" in message
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("module", ["tensorflow", "importlib_resources"])
def test_packages_that_a_download_needs(module, tmp_path, monkeypatch, capsys, no_download):
    monkeypatch.setattr(datasets, "_network_problem", lambda url: "")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == module else find_spec(name))
    for name in ("tiny_fetched", "tiny_grey", "mnist"):
        message = error_of(name, cache_dir=tmp_path)
        assert name in message and "pip install tensorflow-cpu importlib_resources" in message
    assert datasets.load("auto", cache_dir=tmp_path).name == "digits"
    assert "pip install tensorflow-cpu" in capsys.readouterr().err


def test_without_tfds(prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    for data_dir in (None, prepared):
        message = error_of("cifar10", data_dir=data_dir, cache_dir=tmp_path)
        assert "cifar10" in message and "pip install -U tensorflow-datasets" in message
    assert datasets.load("auto", cache_dir=tmp_path).name == "digits"
    assert "pip install -U tensorflow-datasets" in capsys.readouterr().err
    assert datasets.load("digits", cache_dir=tmp_path).name == "digits"
    write_cache(tmp_path)
    assert datasets.load("auto", cache_dir=tmp_path).name == "mnist"
    assert not capsys.readouterr().err


def test_tfds_that_cannot_be_imported(tmp_path):
    """It logs the reason and otherwise pretends to be there."""
    out, err = run("""if True:
        import sys
        sys.modules["tensorflow_metadata"] = None
        import tensorflow_datasets
        from experiments import data
        print(data.load("auto", cache_dir=sys.argv[1]).name)""", tmp_path)
    assert out.strip() == "digits"
    warning = err.splitlines()[-1]
    assert "pip install -U tensorflow-datasets" in warning and "tensorflow_metadata" in warning


@pytest.mark.parametrize("name, near", [
    ("mnits", "mnist"), ("MNIST", "mnist"), ("digit", "digits"), ("Auto", "auto"),
    ("cifar-10", "cifar10"), ("FashionMNIST", "fashion_mnist"), ("tinygrey", "tiny_grey"),
    ("huggingface:mnist", "digits"), ("kubric:movi_a", "digits"), ("../mnist", "mnist"),
    ("", "digits"), ("mnist\n", "mnist"),
])
def test_unknown_names_get_suggestions_and_no_network(name, near, prepared, tmp_path, offline):
    for data_dir in (None, prepared):
        message = error_of(name, data_dir=data_dir, cache_dir=tmp_path)
        assert message.startswith(f"unknown data set {name!r}")
        assert near in message.split("did you mean ")[1].rstrip("?").split(" or ")
    assert not offline
    assert not (tmp_path / "tfds").exists()


@pytest.mark.parametrize("name, part", [("mnist/plain", "plain"), ("mnist:1.0.0", "1.0.0")])
def test_unknown_configurations_and_versions(name, part, tmp_path, offline):
    message = error_of(name, cache_dir=tmp_path)
    assert name in message and part in message and not offline


# Asking the network


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        self.send_response(404 if "missing" in self.path else 200)
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    """An HTTP server on this machine, which is all that can be reached."""
    monkeypatch.undo()
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        server.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_reachable_network(server):
    assert not network_problem(f"{server.address}/file")
    assert server.asked == ["/file"]


def test_missing_file_counts_as_no_network(server):
    problem = network_problem(f"{server.address}/missing")
    assert "no network" in problem and "404" in problem and "127.0.0.1" in problem


def test_network_through_a_proxy(server, monkeypatch):
    monkeypatch.setenv("http_proxy", server.address)
    assert not network_problem("http://far.invalid/file")
    assert server.asked == ["http://far.invalid/file"]


def test_refused_connection(server):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert "ConnectionError from 127.0.0.1" in network_problem(f"http://127.0.0.1:{port}/")


def test_connection_that_hangs(server):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        problem = network_problem(f"http://127.0.0.1:{silent.getsockname()[1]}/", seconds=0.2)
        assert "no network: ReadTimeout from 127.0.0.1" in problem
        assert time.monotonic() - start < 1.1


def test_name_resolution_that_hangs(server, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args: release.wait(30) and [])
    start = time.monotonic()
    problem = network_problem("http://far.invalid/", seconds=0.2)
    assert "no network: no answer from far.invalid" in problem
    assert time.monotonic() - start < 3
    release.set()


# What is imported


def test_import_is_light():
    out, _ = run("""if True:
        import sys
        from experiments import data
        heavy = ("jax", "tensorflow", "tensorflow_datasets", "sklearn", "scipy", "requests")
        print([name for name in heavy if name in sys.modules])""")
    assert out.strip() == "[]"


def test_digits_need_neither_tfds_nor_jax_nor_network(tmp_path):
    out, err = run(BLOCKED + """
    import socket
    socket.socket.connect = socket.getaddrinfo = None
    from experiments import data
    print(data.load("digits", cache_dir=sys.argv[1]).train_images.shape)""", tmp_path)
    assert out.strip() == "(1365, 28, 28, 1)" and not err


def test_cached_digits_need_no_scikit_learn_either(tmp_path):
    out, _ = run("""if True:
        import sys
        from experiments import data
        data.load("digits", cache_dir=sys.argv[1])
        first = {"sklearn", "scipy"} & set(sys.modules)
        print(len(first), len(data.load("digits", cache_dir=sys.argv[1]).test_labels))""", tmp_path)
    assert out.split() == ["2", "360"]
    out, _ = run("""if True:
        import sys
        sys.modules["sklearn"] = sys.modules["scipy"] = None
        from experiments import data
        print(len(data.load("digits", cache_dir=sys.argv[1]).test_labels))""", tmp_path)
    assert out.strip() == "360"


def test_tfds_is_read_without_tensorflow_or_jax(prepared, tmp_path):
    out, _ = run("""if True:
        import sys
        from experiments import data
        dataset = data.load("tiny_grey", data_dir=sys.argv[1], cache_dir=sys.argv[2])
        print(len(dataset.test_images), "tensorflow" in sys.modules, "jax" in sys.modules)""",
                 prepared, tmp_path)
    assert out.strip() == "6 False False"
