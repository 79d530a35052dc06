"""Stored images: the same data sets as in memory, read from arrays, image files and TFDS."""

import zipfile

import numpy as np
import pytest
from npz_files import arrays
from PIL import Image
from tfds_builders import assert_same

from experiments.config import UserError
from experiments.data import datasets, image_files, npz, tfds_records
from experiments.data.image_folder import InFiles
from experiments.data.stored_images import InArray, StoredImages, take

SPLITS = datasets.SPLITS


def both(name, **options):
    """Returns a data set in memory, and with stored images."""
    options.setdefault("cache_dir", "none")
    first = datasets.load(str(name), **options)
    second = datasets.load(str(name), **options, resident_bytes=0)
    return first, second


def assert_same_data(first, second):
    for split in SPLITS:
        images = getattr(second, f"{split}_images")
        assert isinstance(images, StoredImages) and images.dtype == np.uint8 and images.ndim == 4
        second = second._replace(**{f"{split}_images": np.asarray(images)})
    assert_same(first, second)
    assert (first.checksum, first.skipped) == (second.checksum, second.skipped)


@pytest.mark.parametrize("index", [3, -1, slice(1, 4), [4, 0, 4], np.arange(6) > 2, slice(0, 0)])
def test_indexing_is_that_of_an_array(index):
    images = np.random.default_rng(0).integers(0, 256, (9, 4, 5, 3), np.uint8)
    rows = np.array([8, 1, 0, 5, 5, 2])

    class Decoded(InArray):
        decodes = True

    for reader in (InArray(images), Decoded(images)):
        stored = StoredImages(reader, rows)
        assert stored.shape == (6, 4, 5, 3) and len(stored) == 6
        np.testing.assert_array_equal(stored[index], images[rows][index])
        if not isinstance(index, int):
            taken = take(stored, index)
            assert isinstance(taken, StoredImages)
            np.testing.assert_array_equal(np.asarray(taken), images[rows][index])


@pytest.mark.parametrize("channels", [None, 3])
def test_arrays_of_a_file_are_mapped(channels, tmp_path):
    values = arrays((6, 5, channels) if channels else (6, 5), 3)
    np.savez(tmp_path / "plain.npz", **values)
    np.savez_compressed(tmp_path / "packed.npz", **values)
    for name, mapped in (("plain", True), ("packed", False)):
        first, second = both(tmp_path / f"{name}.npz", validation_fraction=0.2)
        assert isinstance(second.train_images.reader.images, np.memmap) == mapped
        assert_same_data(first, second)
    size = sum(x.nbytes for name, x in values.items() if name.endswith("images"))
    for most, kind in ((size, np.ndarray), (size - 1, StoredImages)):
        options = {"cache_dir": "none", "resident_bytes": most}
        dataset = datasets.load(str(tmp_path / "plain.npz"), **options)
        assert all(isinstance(getattr(dataset, f"{split}_images"), kind) for split in SPLITS)


def test_a_file_that_ends_early_is_refused_and_not_mapped(tmp_path):
    np.savez(tmp_path / "whole.npz", **arrays((6, 5), 3))
    with zipfile.ZipFile(tmp_path / "whole.npz") as whole:
        parts = {name: whole.read(name) for name in whole.namelist()}
    parts["train_images.npy"] = parts["train_images.npy"][:-1]
    with zipfile.ZipFile(tmp_path / "cut.npz", "w") as cut:
        for name, content in parts.items():
            cut.writestr(name, content)
    with pytest.raises(UserError, match="train_images.npy has 1327 bytes and not those of"):
        npz.read(str(tmp_path / "cut.npz"), 0)


def test_image_files_are_read_when_they_are_asked_for(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(24):
        folder = tmp_path / "pets" / ("cat", "dog")[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        shape = (9, 7, 3) if k == 5 else (9, 7) if k % 3 else (12, 8)
        pixels = rng.integers(0, 256, shape, np.uint8) if k < 22 else np.full(shape, k % 2, "u1")
        Image.fromarray(pixels).save(folder / f"{k}.png")
    (tmp_path / "pets" / "cat" / "bad.png").write_bytes(b"no image")
    first, second = both(f"{tmp_path}/pets/", validation_fraction=0.2)
    # The source of files that are not kept in memory has a checksum of the labels alone.
    assert_same_data(first._replace(source=second.source), second)
    assert len(second.skipped) == 1 and isinstance(second.train_images.reader, InFiles)
    for path in (tmp_path / "pets").rglob("*.png"):
        path.write_bytes(b"changed")
    with pytest.raises(UserError, match="could be read before and can't any more: not an image"):
        second.train_images[:3]


def test_known_images_are_read_with_the_warnings_of_the_program(tmp_path):
    """Threads that read at the same time would leave each other's filters of warnings behind."""
    Image.new("1", (10_000, 9_000)).save(tmp_path / "large.png")
    with pytest.raises(image_files.UnreadableImage, match="too many pixels"):
        image_files.read(tmp_path / "large.png")
    with pytest.warns(Image.DecompressionBombWarning):
        assert image_files.read(tmp_path / "large.png", known=True).shape == (922, 1024)


def test_records_of_tfds_are_read_by_rows_and_their_labels_once(
    prepared, offline, tmp_path, capsys, monkeypatch
):
    options = {"data_dir": prepared, "validation_fraction": 0.1}
    first = datasets.load("tiny_colour", cache_dir=tmp_path / "a", **options)
    options |= {"cache_dir": tmp_path / "b", "resident_bytes": 0}
    assert_same_data(first, datasets.load("tiny_colour", **options))
    assert [p.name for p in (tmp_path / "b").rglob("*.npz")] == ["tiny_colour.index.npz"]
    assert "(once, for its labels)" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(tfds_records, "_examples", None)
        assert_same_data(first, datasets.load("tiny_colour", **options))
    assert "for its labels" not in capsys.readouterr().err
    (tmp_path / "b" / "datasets" / "tiny_colour.index.npz").write_bytes(b"damaged")
    with pytest.raises(UserError, match="bad data set cache .*index.npz: .*; delete this file"):
        datasets.load("tiny_colour", **options)


def test_decoded_data_sets_in_the_cache_are_mapped(prepared, tmp_path):
    options = {"data_dir": prepared, "cache_dir": tmp_path, "validation_fraction": 0.1}
    first, second = both("tiny_grey", **options)
    assert isinstance(second.train_images.reader.images, np.memmap)
    assert_same_data(first, second)
