"""The digits, the validation split, the cache, and substitutes for data that are unavailable."""

import collections
import contextlib
import errno
import hashlib
import pathlib
import shutil
import sys

import numpy as np
import pytest
import sklearn.datasets
import tensorflow_datasets as tfds
from helpers import load_digits
from tensorflow_datasets.core import constants
from tfds_builders import assert_same, copy, edit_info, error_of, run

from experiments.config import UserError
from experiments.data import datasets


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
        for image, label in zip(enlarged(original.images), original.target.tolist(), strict=True)
    )
    found = collections.Counter(
        (image.tobytes(), label)
        for images, labels in (
            (dataset.train_images, dataset.train_labels),
            (dataset.test_images, dataset.test_labels),
        )
        for image, label in zip(images, labels.tolist(), strict=True)
    )
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
        "test_images": np.zeros((1, 1, 1, 1), np.uint8),
        "test_labels": np.zeros(1, np.int32),
        "class_names": np.array(["a"]),
        "source": np.array("s"),
    }
    chosen = datasets.hold_out_validation("n", arrays, 0.05).validation_labels
    assert len(chosen) == 3000
    assert chosen[:8].tolist() == [24, 41, 58, 99, 101, 127, 153, 155]
    assert int(chosen.sum()) == 91023990


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, float("nan"), 0.99])
def test_impossible_validation_fractions(fraction, prepared, tmp_path):
    message = error_of(
        "tiny_grey", data_dir=prepared, cache_dir=tmp_path, validation_fraction=fraction
    )
    assert str(fraction) in message


BLOCKED = """if True:
    import sys
    for name in ("tensorflow_datasets", "tensorflow", "array_record", "requests", "jax"):
        sys.modules[name] = None  # importing it raises ImportError
    """


def test_cache_equals_its_source_and_needs_no_tfds(prepared, tmp_path):
    first = datasets.load("tiny_grey", data_dir=prepared, cache_dir=tmp_path)
    assert [p.name for p in tmp_path.rglob("*")] == ["datasets", "tiny_grey.npz"]
    out, err = run(
        BLOCKED
        + """
    import hashlib
    from experiments.data import datasets
    for data_dir in (None, sys.argv[1]):
        dataset = datasets.load("tiny_grey", data_dir=data_dir, cache_dir=sys.argv[2])
        print(dataset.name, dataset.source, dataset.class_names,
              hashlib.sha256(b"".join(a.tobytes() for a in dataset[2:8])).hexdigest())""",
        prepared,
        tmp_path,
    )
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
        "test_images": np.ones((4, 2, 4, 1), np.uint8),
        "test_labels": np.zeros(4, np.int32),
        "class_names": np.array(["a", "b", "c"]),
        "source": np.array(f"tfds {name} 3.0.1 from /d"),
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
    "one array": lambda raw: (
        b"\x93NUMPY\x01\x00\x46\x00{'descr': '|u1', 'fortran_order': False,"
        b" 'shape': (1,), }       \n\x00"
    ),
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
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 0x55]) + raw[place + 1 :])
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
    (path,) = (tmp_path / "old" / "datasets").iterdir()
    assert path.name == "tiny_grey.npz" and path.read_bytes() == before


def test_interrupted_reading_leaves_no_cache(prepared, tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(tfds.features.FeaturesDict, "deserialize_example_np", interrupt)
    with pytest.raises(KeyboardInterrupt):
        datasets.load("tiny_grey", data_dir=prepared, cache_dir=tmp_path)
    assert not list(tmp_path.rglob("*.npz"))


def test_offline_is_an_error_for_a_name_and_digits_for_auto(tmp_path, capsys, no_download):
    message = error_of("mnist", cache_dir=tmp_path)
    assert message.startswith(f"mnist is not prepared in {tmp_path / 'tfds'}, and no network: ")
    assert "--data_dir" in message and "--dataset=digits" in message
    assert not capsys.readouterr().err
    dataset = datasets.load("auto", cache_dir=tmp_path)
    assert_same(dataset, datasets.load("digits", cache_dir=tmp_path))
    (warning,) = capsys.readouterr().err.splitlines()
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
    out, err = run(
        """if True:
        import sys
        sys.modules["tensorflow_metadata"] = None
        import tensorflow_datasets
        from experiments.data import datasets
        print(datasets.load("auto", cache_dir=sys.argv[1]).name)""",
        tmp_path,
    )
    assert out.strip() == "digits"
    warning = err.splitlines()[-1]
    assert "pip install -U tensorflow-datasets" in warning and "tensorflow_metadata" in warning


def test_import_is_light():
    out, _ = run("""if True:
        import sys
        from experiments.data import datasets
        heavy = ("jax", "tensorflow", "tensorflow_datasets", "sklearn", "scipy", "requests")
        print([name for name in heavy if name in sys.modules])""")
    assert out.strip() == "[]"


def test_digits_need_neither_tfds_nor_jax_nor_network(tmp_path):
    out, err = run(
        BLOCKED
        + """
    import socket
    socket.socket.connect = socket.getaddrinfo = None
    from experiments.data import datasets
    print(datasets.load("digits", cache_dir=sys.argv[1]).train_images.shape)""",
        tmp_path,
    )
    assert out.strip() == "(1365, 28, 28, 1)" and not err


def test_cached_digits_need_no_scikit_learn_either(tmp_path):
    out, _ = run(
        """if True:
        import sys
        from experiments.data import datasets
        datasets.load("digits", cache_dir=sys.argv[1])
        first = {"sklearn", "scipy"} & set(sys.modules)
        print(len(first), len(datasets.load("digits", cache_dir=sys.argv[1]).test_labels))""",
        tmp_path,
    )
    assert out.split() == ["2", "360"]
    out, _ = run(
        """if True:
        import sys
        sys.modules["sklearn"] = sys.modules["scipy"] = None
        from experiments.data import datasets
        print(len(datasets.load("digits", cache_dir=sys.argv[1]).test_labels))""",
        tmp_path,
    )
    assert out.strip() == "360"


def test_doubts_are_said():
    usual = load_digits()
    assert datasets.doubts(usual) == []
    dark = usual._replace(train_images=usual.train_images // 255)
    (line,) = datasets.doubts(dark)
    assert line.startswith("the largest pixel is 1 of 255, nearly black")
    fewer = usual._replace(train_labels=usual.train_labels.clip(1))
    (line,) = datasets.doubts(fewer)
    assert line == "class 0 has no training images: do labels start at 1? subtract 1"
