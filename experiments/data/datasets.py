"""Image classification data sets as host arrays: those of TFDS, and bundled digits."""

import contextlib
import difflib
import importlib.util
import os
import re
import sys
import tempfile
import threading
from typing import NamedTuple

import numpy as np

from experiments.config import UserError
from experiments.data.npz import FORM, check, read

_DIGITS = "scikit-learn digits, 8x8 enlarged to 28x28"
_EYES, _CLASSES = ("image", "image2"), ("label", "label_category")  # names of TFDS


class Dataset(NamedTuple):
    """Images uint8 [N, H, W, C], labels int32 [N] in 0..num_classes-1; disjoint splits."""

    name: str
    source: str
    train_images: np.ndarray
    train_labels: np.ndarray
    validation_images: np.ndarray
    validation_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]

    @property
    def image_shape(self):
        """(H, W, C)."""
        return self.train_images.shape[1:]

    @property
    def num_classes(self):
        """The number of classes, with or without examples."""
        return len(self.class_names)


class _Unavailable(UserError):
    """The data set is neither here nor to be had: 'auto' then takes the digits."""


def load(name, *, data_dir=None, cache_dir, validation_fraction=0.05):
    """Loads a Dataset from the cache, else from a prepared TFDS folder, else by download.

    Raises UserError if it is unknown, unusable or not to be had, or if its cache is corrupt.

    Args:
      name: 'digits', a TFDS 'name[/config][:version]', 'auto': MNIST or else the digits, or the
        path of an .npz file, see :mod:`experiments.data.npz`.
      data_dir: TFDS folder that holds it prepared; never downloaded into. None: TFDS's own.
      cache_dir: folder in which ``datasets/<name>.npz`` is read or, where possible, written.
      validation_fraction: share in [0, 1) of the training examples, the same ones for all seeds.
    """
    data_dir = os.path.abspath(os.path.expanduser(data_dir)) if data_dir else None
    wanted = "mnist" if name == "auto" else name
    try:
        if name.endswith(".npz"):
            arrays = read(name)
        else:
            arrays = _cached_or_read(wanted, data_dir, cache_dir)
    except _Unavailable as error:
        if name != "auto":
            raise
        print(f"WARNING: scikit-learn's small digits instead of MNIST: {error}", file=sys.stderr)
        wanted, arrays = "digits", _cached_or_read("digits", None, cache_dir)
    return _split(wanted, arrays, validation_fraction)


def _split(name, arrays, fraction):
    parts = [arrays[key] for key in FORM]
    size = len(parts[1])
    if not (0 <= fraction < 1 and (held_out := round(fraction * size)) < size):
        raise UserError(f"validation fraction {fraction}: not in [0, 1), or no training data left")
    # RandomState's stream is frozen; that of np.random.Generator may change with NumPy.
    chosen = np.random.RandomState(20171026).permutation(size) < held_out
    return Dataset(
        name,
        str(parts[5]),
        *(part[~chosen] for part in parts[:2]),
        *(part[chosen] for part in parts[:2]),
        *parts[2:4],
        tuple(parts[4].tolist()),
    )


def _digits():
    from scipy import ndimage
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    large = ndimage.zoom(digits.images, (1, 3.5, 3.5), order=1, mode="nearest", grid_mode=True)
    # 8 of 16 is a tie at 127.5: the margin sends it up whatever the rounding errors.
    images = np.floor(large * (255 / 16) + 0.5 + 1e-6).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int32)
    parts = train_test_split(images, labels, test_size=360, random_state=0, stratify=labels)
    names = digits.target_names.astype(str)
    return dict(zip(FORM, (*parts[::2], *parts[1::2], names, _DIGITS), strict=True))


def cache_file(name, cache_dir):
    """Where a data set is kept in a cache folder once it has been read."""
    return os.path.join(os.path.expanduser(cache_dir), "datasets", name.replace("/", "+") + ".npz")


def _cached_or_read(name, data_dir, cache_dir):
    path = cache_file(name, cache_dir)
    arrays = _read_cache(path, name) if os.path.exists(path) else None
    if name == "digits":  # cached because the import of scikit-learn takes seconds
        arrays = arrays or _write_cache(path, _digits())
    elif not arrays or (data_dir and not str(arrays["source"]).endswith(f" from {data_dir}")):
        arrays = _write_cache(path, _read_tfds(name, data_dir, path))
    return arrays


def _read_cache(path, name):
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = check({key: stored[key] for key in FORM})
        start = _DIGITS if name == "digits" else f"tfds {name} "
        if not str(arrays["source"]).startswith(start):
            raise ValueError(f"it does not hold {name}")
    except Exception as error:  # whatever zipfile, zlib and NumPy say to a damaged file
        raise UserError(f"bad data set cache {path}: {_reason(error)}; delete this file") from error
    return arrays


def _write_cache(path, arrays):
    """Returns the arrays."""
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            np.savez(os.path.join(scratch, "whole.npz"), **arrays)
            os.replace(os.path.join(scratch, "whole.npz"), path)
    except OSError as error:
        print(f"going on without a cache: cannot write {path} ({error})", file=sys.stderr)
    return arrays


def _reason(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _read_tfds(name, data_dir, cache_path):
    try:
        from tensorflow_datasets import public_api as tfds  # the package itself hides failures
    except Exception as error:  # not ImportError only: a wrong protobuf raises TypeError
        raise _Unavailable(
            f"{name} needs: pip install -U tensorflow-datasets ({_reason(error)}); "
            "or use --dataset=digits"
        ) from error
    builder = _builder(tfds, name, data_dir)
    features, folder = builder.info.features, builder.data_dir
    # A second image of the same shape is that of the other eye (smallnorb).
    images = [features[key] for key in _EYES if key in features]
    label = next((features[key] for key in _CLASSES if key in features), None)
    if not (
        images
        and isinstance(label, tfds.features.ClassLabel)
        and all(
            isinstance(image, tfds.features.Image)
            and image.np_dtype == np.uint8
            and None not in image.shape
            for image in images
        )
    ):
        raise UserError(f"cannot use {name}: not 8-bit images of one size with a class label")
    if not os.path.exists(os.path.join(folder, "dataset_info.json")):  # is_prepared() warns
        _prepare(tfds, builder, name, data_dir)
    test = "test" if "test" in builder.info.splits else "validation"
    if not {"train", test} <= set(builder.info.splits):
        raise UserError(f"{name} has no split 'train', or none of 'test' and 'validation'")
    print(f"reading {name} from {folder} (once; cached in {cache_path})", file=sys.stderr)
    source = f"tfds {name} {builder.version} from {data_dir or builder.data_dir_root}"
    try:
        values = *_read_split(builder, "train"), *_read_split(builder, test), label.names, source
        return check(dict(zip(FORM, map(np.asarray, values), strict=True)))
    except Exception as error:  # TFDS, array_record and PIL raise what they like
        raise UserError(f"cannot read {name} from {folder}: {_reason(error)}") from error


def _builder(tfds, name, data_dir):
    try:
        if re.fullmatch(r"[a-z][a-z0-9_]*(/[\w.-]+)?(:\d+\.\d+\.\d+)?", name):
            return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        pass
    except Exception as error:
        raise UserError(f"TFDS cannot open {name}: {_reason(error)}") from error
    # No community data sets, here and in the pattern: TFDS looks for those on the network.
    known = ["auto", "digits", *tfds.list_builders(with_community_datasets=False)]
    near = difflib.get_close_matches(name.lower(), known) or ["digits", "mnist"]
    raise UserError(f"unknown data set {name!r}; did you mean {' or '.join(near)}?")


def _prepare(tfds, builder, name, data_dir):
    if data_dir:
        there = sorted(os.listdir(data_dir))[:9] if os.path.isdir(data_dir) else "no such folder"
        raise UserError(
            f"{name} is not prepared in {data_dir} ({there}): looked for "
            f"{builder.data_dir}; correct --data_dir"
        )
    problem = None
    if None in map(importlib.util.find_spec, ("tensorflow", "importlib_resources")):
        problem = "TFDS needs more for that: pip install tensorflow-cpu importlib_resources"
    elif builder.url_infos:  # TFDS itself would try an unreachable host for minutes
        problem = _network_problem(min(builder.url_infos))
    if not problem:
        print(f"preparing {name} with TFDS in {builder.data_dir} (once)", file=sys.stderr)
        config = tfds.download.DownloadConfig(try_download_gcs=False)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                return builder.download_and_prepare(
                    download_config=config, file_format="array_record"
                )
        except Exception as error:
            problem = f"TFDS failed to: {_reason(error)}"
    raise _Unavailable(
        f"{name} is not prepared in {builder.data_dir_root}, and {problem}; "
        "use --data_dir, or --dataset=digits"
    )


def _network_problem(url, seconds=4):
    import requests  # what TFDS itself uses, so the same proxies and certificates

    outcome = ["no answer"]

    def ask():
        try:
            with requests.get(url, stream=True, timeout=seconds) as answer:
                outcome[0] = "" if answer.ok else f"status {answer.status_code}"
        except requests.RequestException as error:
            outcome[0] = type(error).__name__

    # In a thread because no time limit of requests covers name resolution.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds + 1)
    return outcome[0] and f"no network: {outcome[0]} from {url.split('/')[2]}"


def _read_split(builder, split):
    features, record = builder.info.features, builder.info.splits[split]
    eyes, (label, *_) = ([key for key in keys if key in features] for keys in (_EYES, _CLASSES))
    size, shape = record.num_examples, features[eyes[0]].shape
    if builder.info.file_format.value == "tfrecord":
        examples = map(features.deserialize_example_np, _tfrecords(record.filepaths))
    else:
        source = builder.as_data_source(split=split, file_format="array_record")
        examples = (
            example
            for start in range(0, size, 1000)
            for example in source.__getitems__(range(start, min(start + 1000, size)))
        )
    channels = shape[-1]
    images = np.empty((size, *shape[:-1], channels * len(eyes)), np.uint8)
    labels = np.empty(size, np.int32)
    for index, example in zip(range(size), examples, strict=True):
        for n, eye in enumerate(eyes):
            if example[eye].shape != shape:  # which NumPy might broadcast
                raise ValueError(f"{split} image {index} is {example[eye].shape}, not {shape}")
            images[index, ..., n * channels : (n + 1) * channels] = example[eye]
        labels[index] = example[label]
    return images, labels


def _tfrecords(paths):
    for path in paths:
        with open(path, "rb") as file:
            while header := file.read(12):  # length of the record, checksum of the length
                yield file.read(int.from_bytes(header[:8], "little") + 4)[:-4]  # checksum
