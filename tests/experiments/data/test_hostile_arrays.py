"""Array files, caches and prepared data sets of somebody else."""

import io
import json
import os
import zipfile

import numpy as np
import pytest
import scipy.io

from experiments.config import UserError
from experiments.data import affnist_images, dataset_cache, datasets, npz, tfds


def test_arrays_that_unpack_to_more_than_the_memory_are_refused_by_their_headers(tmp_path):
    header = io.BytesIO()
    form = {"descr": "|u1", "fortran_order": False, "shape": (10**6, 1000, 1000, 1)}
    np.lib.format.write_array_header_1_0(header, form)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in ("train_images", "train_labels", "test_images", "test_labels"):
            archive.writestr(f"{name}.npy", header.getvalue())
    with pytest.raises(UserError, match="unpacking the arrays needs 8 TB"):
        npz.read(str(tmp_path / "a.npz"))


def test_what_is_no_archive_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "fifo.npz")
    np.save(tmp_path / "one.npy", np.zeros(3))
    os.rename(tmp_path / "one.npy", tmp_path / "one.npz")
    for name, said in (("fifo", "not a regular file"), ("one", "a single array")):
        with pytest.raises(UserError, match=said):
            npz.read(str(tmp_path / f"{name}.npz"))


def test_a_cache_with_other_pixels_is_refused(tmp_path):
    first = datasets.load("digits", cache_dir=str(tmp_path))
    assert datasets.load("digits", cache_dir=str(tmp_path)).checksum == first.checksum
    path = dataset_cache.cache_file("digits", str(tmp_path))
    with np.load(path) as stored:
        arrays = dict(stored)
    # Older versions have no checksum.
    np.savez(path, **{name: a for name, a in arrays.items() if name != "checksum"})
    assert datasets.load("digits", cache_dir=str(tmp_path)).checksum == first.checksum
    np.savez(path, **arrays | {"train_images": 255 - arrays["train_images"]})
    with pytest.raises(UserError, match="another checksum; delete this file"):
        datasets.load("digits", cache_dir=str(tmp_path))


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_cache_that_others_may_write_is_refused(tmp_path, mode):
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets").chmod(mode)
    with pytest.raises(UserError, match="chmod go-w"):
        datasets.load("digits", cache_dir=str(tmp_path))


@pytest.mark.parametrize("key", ["pythonClassName", "type"])
def test_classes_of_features_are_those_of_tfds(tmp_path, key):
    folder = tmp_path / "mnist" / "3.0.1"
    folder.mkdir(parents=True)
    good = "tensorflow_datasets.core.features.image_feature.Image"
    inside = {"featuresDict": {"features": {"image": {key: good}}}}
    (folder / "features.json").write_text(json.dumps(inside))
    tfds.check_features("mnist:3.0.1", str(tmp_path))
    for bad in ("os.path", "tensorflow_datasets.scripts.x", f"x.{good}"):
        (folder / "features.json").write_text(json.dumps([inside, {"a": [{key: bad}]}]))
        with pytest.raises(UserError, match="none of TFDS's|is a list"):
            tfds.check_features("mnist", str(tmp_path))
        (folder / "features.json").write_text(json.dumps({"a": [inside, {key: bad}]}))
        with pytest.raises(UserError, match="none of TFDS's"):
            tfds.check_features("mnist", str(tmp_path))


def test_small_files_of_matlab_that_unpack_to_much_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"affNISTdata": np.zeros(10**6)}, do_compression=True)
    monkeypatch.setattr(affnist_images, "MOST_BYTES", 10**6)
    with pytest.raises(UserError, match="unpacks to more than 1,000,000 bytes"):
        affnist_images.read_official_files(str(path))
