"""Image classification data sets as arrays in host memory.

A TFDS data set is read once and kept as one ``.npz`` file: later runs need no TFDS, TensorFlow
or network. ``digits`` comes with scikit-learn and needs none of them at any time.
"""

import contextlib
import difflib
import importlib.util
import os
import re
import sys
import threading
import uuid
from typing import NamedTuple

import numpy as np

from experiments.errors import UserError

_KEYS = "train_images train_labels test_images test_labels class_names source".split()
_NAME = r"[a-z]\w*(/[\w.-]+)?(:\d+\.\d+\.\d+)?"  # no namespace: TFDS looks those up online


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
    """Loads a Dataset: from the cache, else from a prepared TFDS folder, else by download.

    Args:
      name: 'digits', a TFDS 'name[/config][:version]', or 'auto': MNIST or, where that is not
        to be had, the digits and a warning on standard error.
      data_dir: TFDS folder that holds the data set prepared; never downloaded into. None:
        TFDS's own default folder, in which the data set is prepared if need be.
      cache_dir: folder in which ``datasets/<name>.npz`` is read or, where possible, written.
      validation_fraction: share in [0, 1) of the training examples, rounded, to set apart for
        validation. Which ones depends only on how many there are.

    Raises:
      UserError: the data set is unknown, unusable or not to be had, or its cache is corrupt.
    """
    data_dir = os.path.abspath(os.path.expanduser(data_dir)) if data_dir else None
    cache = os.path.join(os.path.expanduser(cache_dir), "datasets")
    if name == "auto":
        try:
            return _split("mnist", _cached_or_read("mnist", data_dir, cache), validation_fraction)
        except _Unavailable as error:
            _say(f"WARNING: using scikit-learn's small handwritten digits, NOT MNIST: {error}")
            name = "digits"
    arrays = _digits() if name == "digits" else _cached_or_read(name, data_dir, cache)
    return _split(name, arrays, validation_fraction)


def _say(message):
    print(message, file=sys.stderr, flush=True)


def _reason(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _split(name, arrays, fraction):
    images, labels = arrays["train_images"], arrays["train_labels"]
    if not (0 <= fraction < 1 and (held_out := round(fraction * len(labels))) < len(labels)):
        raise UserError(f"validation fraction {fraction}: must be in [0, 1) and leave training data")
    chosen = np.zeros(len(labels), bool)
    # RandomState's stream is frozen; that of np.random.Generator may change with NumPy.
    chosen[np.random.RandomState(20171026).permutation(len(labels))[:held_out]] = True
    return Dataset(name, str(arrays["source"]), images[~chosen], labels[~chosen], images[chosen],
                   labels[chosen], arrays["test_images"], arrays["test_labels"],
                   tuple(arrays["class_names"].tolist()))


def _digits():
    from scipy import ndimage
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    small, labels = load_digits(return_X_y=True)
    large = ndimage.zoom(small.reshape(-1, 8, 8), (1, 3.5, 3.5), order=1, mode="nearest",
                         grid_mode=True)
    # 8 of 16 is a tie at 127.5: the margin sends it up whatever the rounding errors.
    images = np.floor(large * (255 / 16) + 0.5 + 1e-6).astype(np.uint8)[..., None]
    train, test, train_labels, test_labels = train_test_split(
        images, labels.astype(np.int32), test_size=360, random_state=0, stratify=labels)
    source = "scikit-learn digits, 8x8 enlarged to 28x28"
    return _arrays(train, train_labels, test, test_labels, list("0123456789"), source)


def _arrays(*values):
    return dict(zip(_KEYS, map(np.asarray, values), strict=True))


def _cached_or_read(name, data_dir, folder):
    path = os.path.join(folder, re.sub("[/:]", "+", name) + ".npz")
    if re.fullmatch(_NAME, name) and os.path.exists(path):
        arrays = _read_cache(path, name)
        if data_dir is None or str(arrays["source"]).endswith(f" from {data_dir}"):
            return arrays
    arrays = _read_tfds(name, data_dir, path)
    _write_cache(path, arrays)
    return arrays


def _check(arrays):
    names = arrays["class_names"]
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if (images.dtype, images.ndim, labels.dtype, labels.ndim) != (np.uint8, 4, np.int32, 1):
            raise ValueError(f"{split} images are not uint8 of rank 4, or labels not int32")
        if not 0 < len(images) == len(labels):
            raise ValueError(f"{len(images)} {split} images and {len(labels)} labels")
        if names.ndim != 1 or labels.min() < 0 or labels.max() >= len(names):
            raise ValueError(f"{split} labels outside 0..{names.size - 1}")
    if arrays["train_images"].shape[1:] != arrays["test_images"].shape[1:]:
        raise ValueError("train and test images differ in shape")


def _read_cache(path, name):
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in _KEYS}
        if not str(arrays["source"]).startswith(f"tfds {name} "):
            raise ValueError(f"it does not hold {name}")
        _check(arrays)
    except Exception as error:  # whatever zipfile, zlib and NumPy say to a damaged file
        raise UserError(f"bad data set cache {path}: {_reason(error)}; delete this file") from error
    return arrays


def _write_cache(path, arrays):
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(temporary, "xb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, path)
    except OSError as error:
        _say(f"cannot write {path} ({error.strerror or error}); going on without a cache")
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _read_tfds(name, data_dir, cache_path):
    builder = _builder(name, data_dir)
    folder, splits = str(builder.data_dir), builder.info.splits
    class_names = _class_names(name, builder.info.features)
    # Not builder.is_prepared(), which logs a warning where it is not.
    if not os.path.exists(os.path.join(folder, "dataset_info.json")):
        _prepare(builder, name, data_dir)
    test = "test" if "test" in builder.info.splits else "validation"
    if not {"train", test} <= set(builder.info.splits):
        raise UserError(f"{name} has no split 'train', or neither 'test' nor 'validation': "
                        f"it has {', '.join(builder.info.splits) or 'none'}")
    _say(f"reading {name} from {folder} (once; cached in {cache_path})")
    try:
        arrays = _arrays(*_read_split(builder, "train"), *_read_split(builder, test), class_names,
                         f"tfds {name} {builder.version} from {builder.data_dir_root}")
        _check(arrays)
    except Exception as error:  # TFDS, array_record and PIL raise what they like
        raise UserError(f"cannot read {name} from {folder}: {_reason(error)}") from error
    return arrays


def _builder(name, data_dir):
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise _Unavailable(f"{name} needs TensorFlow Datasets ({_reason(error)}): pip install "
                           "tensorflow-datasets, or use --dataset=digits") from error
    try:
        if re.fullmatch(_NAME, name):
            return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        pass
    except Exception as error:
        raise UserError(f"TFDS cannot open {name}: {_reason(error)}") from error
    # Without community data sets: listing those goes to the network.
    known = ["auto", "digits", *tfds.list_builders(with_community_datasets=False)]
    near = difflib.get_close_matches(name.lower(), known) or ["digits", "mnist"]
    raise UserError(f"unknown data set {name!r}; did you mean {' or '.join(near)}?")


def _class_names(name, features):
    from tensorflow_datasets.features import ClassLabel, Image

    image, label = (features[key] if key in features else None for key in ("image", "label"))
    if not (isinstance(image, Image) and image.np_dtype == np.uint8 and None not in image.shape
            and isinstance(label, ClassLabel) and label.num_classes):
        raise UserError(f"cannot use {name}: not 8-bit images of one size with a class label")
    return label.names


def _prepare(builder, name, data_dir):
    import tensorflow_datasets as tfds

    if data_dir:
        there = os.listdir(data_dir) if os.path.isdir(data_dir) else ["no folder"]
        raise UserError(f"{name} is not prepared in {data_dir}: no {builder.data_dir}; "
                        f"there is {', '.join(sorted(there)[:9]) or 'nothing'}")
    problem = f"{name} is not prepared in {builder.data_dir_root}, and "
    advice = "; use --data_dir, or --dataset=digits"
    # TFDS retries an unreachable host for minutes: find that out first.
    if builder.url_infos and (silence := _network_problem(min(builder.url_infos))):
        raise _Unavailable(f"{problem}no network: {silence}{advice}")
    if not all(map(importlib.util.find_spec, ("tensorflow", "importlib_resources"))):
        raise _Unavailable(f"{problem}TFDS cannot prepare it without more: pip install "
                           f"tensorflow-cpu importlib_resources{advice}")
    _say(f"downloading and preparing {name} with TFDS in {builder.data_dir} (once)")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            builder.download_and_prepare(
                file_format="array_record",
                download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    except Exception as error:
        raise _Unavailable(f"{problem}TFDS failed to: {_reason(error)}{advice}") from error


def _network_problem(url, seconds=4):
    import requests  # what TFDS itself uses, so the same proxies and certificates

    host = url.split("/")[2]
    problem = [f"{host} does not answer"]

    def ask():
        try:
            with requests.get(url, stream=True, timeout=seconds) as answer:
                problem[0] = "" if answer.ok else f"{host} answers {answer.status_code}"
        except requests.RequestException as error:
            problem[0] = f"cannot reach {host} ({type(error).__name__})"

    # In a thread because no time limit of requests covers name resolution.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds + 1)
    return problem[0]


def _read_split(builder, split):
    features, record = builder.info.features, builder.info.splits[split]
    shape, size = features["image"].shape, record.num_examples
    if "tfrecord" == builder.info.file_format.value:
        examples = map(features.deserialize_example_np, _tfrecords(record.filepaths))
    else:
        source = builder.as_data_source(split=split, file_format="array_record")
        examples = (example for start in range(0, len(source), 1000)
                    for example in source.__getitems__(range(start, min(start + 1000, size))))
    images, labels = np.empty((size, *shape), np.uint8), np.empty(size, np.int32)
    for index, example in zip(range(size), examples, strict=True):
        if example["image"].shape != shape:  # which NumPy might broadcast
            raise ValueError(f"{split} image {index} is {example['image'].shape}, not {shape}")
        images[index], labels[index] = example["image"], example["label"]
    return images, labels


def _tfrecords(paths):
    for path in paths:
        with open(path, "rb") as file:
            while header := file.read(12):  # the length of the record and its checksum
                yield file.read(int.from_bytes(header[:8], "little"))
                file.read(4)  # checksum of the record
