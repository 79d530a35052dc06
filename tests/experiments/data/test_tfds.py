"""Data sets that TFDS has prepared: reading them, damage, and preparing them."""

import collections
import importlib.util
import shutil
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants
from tfds_builders import (
    Tiny,
    TinyColour,
    TinyGrey,
    assert_same,
    copy,
    edit_info,
    error_of,
    pixels,
    png,
    prepare,
    run,
)

from experiments.data import datasets
from experiments.data import tfds as tfds_module


@pytest.mark.parametrize("builder", [TinyGrey, TinyColour])
def test_reads_what_tfds_stores_in_its_order(builder, prepared, tmp_path, capsys):
    dataset = datasets.load(
        builder.name, data_dir=str(prepared), cache_dir=tmp_path, validation_fraction=0
    )
    assert dataset.name == builder.name
    assert dataset.source == f"tfds {builder.name} 1.2.3 from {prepared}"
    assert dataset.class_names == builder.NAMES and dataset.num_classes == 3
    assert dataset.image_shape == builder.SHAPE
    for split, images, labels in (
        ("train", dataset.train_images, dataset.train_labels),
        ("test", dataset.test_images, dataset.test_labels),
    ):
        assert images.dtype == np.uint8 and labels.dtype == np.int32
        stored = tfds.data_source(builder.name, split=split, data_dir=prepared, download=False)
        assert len(stored) == len(images) == len(labels) == builder.SIZES[split]
        for index in range(len(stored)):
            np.testing.assert_array_equal(images[index], stored[index]["image"])
            assert labels[index] == stored[index]["label"]
        # And TFDS, which shuffles, stores what it was given.
        written = pixels(split, builder.SIZES[split], builder.SHAPE)
        assert collections.Counter(i.tobytes() for i in images) == collections.Counter(
            i.tobytes() for i in written
        )
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
        from experiments.data import datasets
        for name in ("tiny_grey", "tiny_grey:1.2.3"):
            for _ in range(2):  # from TFDS, from the cache
                folders = dict.fromkeys(("data_dir", "cache_dir"), {str(tmp_path)!r})
                dataset = datasets.load(name, **folders)
                print(dataset.name, dataset.source, len(dataset.train_images), sep="; ")"""
    out, err = run(read)
    assert out.splitlines() == [
        f"{name}; tfds {name} 1.2.3 from {tmp_path}; 19"
        for name in ("tiny_grey", "tiny_grey:1.2.3")
        for _ in range(2)
    ]
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
def test_unsuitable_data_are_refused_before_a_download(name, tmp_path, no_download):
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
@pytest.mark.slow
def test_tfrecord_files_hold_the_same_in_the_same_order(prepared, tmp_path):
    """In another process: TensorFlow is slow to import and has no business in this one."""
    run(
        "import sys; sys.path.insert(0, 'tests'); import tfds_builders as t; "
        "t.prepare(sys.argv[1], [t.TinyGrey], 'tfrecord')",
        tmp_path,
    )
    assert list(tmp_path.rglob("*.tfrecord*")) and not list(tmp_path.rglob("*.array_record*"))
    records = datasets.load("tiny_grey", data_dir=tmp_path, cache_dir=tmp_path / "a")
    arrays = datasets.load("tiny_grey", data_dir=prepared, cache_dir=tmp_path / "b")
    assert_same(records, arrays._replace(source=records.source))


def truncate(folder):
    (path,) = folder.rglob("*train*record*")
    path.write_bytes(path.read_bytes()[:-100])


def put_tfrecords(folder, left_out=0, cut=None):
    """Writes the records as TFRecord: each between its length and checksums, which nobody reads."""
    (info,) = folder.rglob("dataset_info.json")
    for split in ("train", "test"):
        records = tfds.builder_from_directory(info.parent).as_data_source(split).data_source
        raw = b"".join(
            len(record).to_bytes(8, "little") + bytes(4) + record + bytes(4)
            for record in (records[i] for i in range(len(records) - left_out))
        )
        name = f"{folder.name}-{split}.tfrecord-00000-of-00001"
        (info.parent / name).write_bytes(raw[:cut])
    edit_info(folder, lambda text: text.replace("array_record", "tfrecord"))


def edit_features(folder, old, new):
    (path,) = folder.rglob("features.json")
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
    assert (
        len(datasets.load("tiny_copy", data_dir=tmp_path, cache_dir=tmp_path / "a").test_labels)
        == 6
    )
    DAMAGES[damage](tmp_path / "tiny_copy")
    message = error_of("tiny_copy", data_dir=tmp_path, cache_dir=tmp_path / "b")
    assert "tiny_copy" in message
    assert not (tmp_path / "b").exists()


def test_images_of_another_shape_are_not_broadcast(prepared, tmp_path):
    copy(prepared / "tiny_row" / "1.2.3", tmp_path / "tiny_copy" / "1.2.3", "tiny_copy")
    edit_features(tmp_path, '"1"', '"5"')
    message = error_of("tiny_copy", data_dir=tmp_path, cache_dir=tmp_path)
    assert "(1, 4, 3)" in message and "(5, 4, 3)" in message


@pytest.mark.parametrize("name", ["mnist", "auto", "tiny_grey"])
def test_given_folder_without_the_data_set(name, prepared, tmp_path, no_download, monkeypatch):
    """Not even prepared elsewhere, and not even with a network."""
    monkeypatch.setattr(tfds_module, "network_problem", lambda url: "")
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
    monkeypatch.setattr(tfds_module, "network_problem", lambda url: asked.append(url) or "")
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


def test_array_record_is_needed_only_by_its_files(prepared, tmp_path, monkeypatch):
    """There are systems without it, and TFDS does not require it on any but Linux."""
    copy(prepared / "tiny_grey" / "1.2.3", tmp_path / "tiny_copy" / "1.2.3", "tiny_copy")
    arrays = datasets.load("tiny_copy", data_dir=tmp_path, cache_dir=tmp_path / "a")
    with monkeypatch.context() as absent:
        absent.setitem(sys.modules, "array_record", None)
        message = error_of("tiny_copy", data_dir=tmp_path, cache_dir=tmp_path / "b")
    assert "needs the package array_record" in message
    put_tfrecords(tmp_path / "tiny_copy")
    monkeypatch.setitem(sys.modules, "array_record", None)
    assert_same(arrays, datasets.load("tiny_copy", data_dir=tmp_path, cache_dir=tmp_path / "b"))


@pytest.mark.parametrize("module", ["tensorflow", "importlib_resources"])
def test_packages_that_a_download_needs(module, tmp_path, monkeypatch, capsys, no_download):
    monkeypatch.setattr(tfds_module, "network_problem", lambda url: "")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == module else find_spec(name)
    )
    for name in ("tiny_fetched", "tiny_grey", "mnist"):
        message = error_of(name, cache_dir=tmp_path)
        assert name in message and "pip install tensorflow-cpu importlib_resources" in message
    assert datasets.load("auto", cache_dir=tmp_path).name == "digits"
    assert "pip install tensorflow-cpu" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, near",
    [
        ("mnits", "mnist"),
        ("MNIST", "mnist"),
        ("digit", "digits"),
        ("Auto", "auto"),
        ("cifar-10", "cifar10"),
        ("FashionMNIST", "fashion_mnist"),
        ("tinygrey", "tiny_grey"),
        ("huggingface:mnist", "digits"),
        ("kubric:movi_a", "digits"),
        ("../mnist", "mnist"),
        ("", "digits"),
        ("mnist\n", "mnist"),
    ],
)
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


def test_tfds_is_read_without_tensorflow_or_jax(prepared, tmp_path):
    out, _ = run(
        """if True:
        import sys
        from experiments.data import datasets
        dataset = datasets.load("tiny_grey", data_dir=sys.argv[1], cache_dir=sys.argv[2])
        print(len(dataset.test_images), "tensorflow" in sys.modules, "jax" in sys.modules)""",
        prepared,
        tmp_path,
    )
    assert out.strip() == "6 False False"


class TinyStereo(Tiny):
    """Images of two cameras and a category, as smallnorb has them."""

    SHAPE, SIZES = (6, 5, 1), {"train": 12, "test": 4}

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=self.SHAPE),
            "image2": tfds.features.Image(shape=self.SHAPE),
            "label_azimuth": tfds.features.ClassLabel(num_classes=9),
            "label_category": tfds.features.ClassLabel(names=self.NAMES),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _generate_examples(self, split):
        for n in range(self.SIZES[split]):
            left = np.full(self.SHAPE, n, np.uint8)
            yield (
                n,
                {
                    "image": png(left),
                    "image2": png(left + 100),
                    "label_azimuth": n % 9,
                    "label_category": n % 3,
                },
            )


def test_stereo_pairs_become_two_channels(tmp_path):
    prepare(tmp_path, [TinyStereo])
    got = datasets.load(
        "tiny_stereo", data_dir=tmp_path, cache_dir=tmp_path / "cache", validation_fraction=0
    )
    assert got.image_shape == (6, 5, 2) and got.class_names == ("ant", "bee", "cow")
    np.testing.assert_array_equal(got.train_labels, got.train_images[:, 0, 0, 0] % 3)
    left, right = got.train_images[..., 0], got.train_images[..., 1]
    np.testing.assert_array_equal(right, left + 100)
    assert sorted(left[:, 0, 0]) == list(range(12))
