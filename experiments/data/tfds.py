"""Image classification data sets of TensorFlow Datasets (TFDS) as arrays.

Prepared data sets are read without TensorFlow. Others are prepared in TFDS's default folder,
which takes TensorFlow and a network.
"""

import contextlib
import difflib
import importlib.util
import os
import pathlib
import re
import sys
import threading

import numpy as np

from experiments import UserError
from experiments.data import npz
from experiments.data.errors import DatasetUnavailable, first_line
from experiments.files import read_json

IMAGE_KEYS = ("image", "image2")  # names of features in TFDS
OWN_CLASSES = "tensorflow_datasets.core.features."
LABEL_KEYS = ("label", "label_category")


def read(name, data_dir, cache_path):
    """Returns the arrays of a data set of TFDS, which prepares it first if that is necessary.

    Args:
      name: 'name[/config][:version]'.
      data_dir: folder that contains the prepared data set, or None for TFDS's default folder.
      cache_path: where the caller will cache the arrays; it is only mentioned to the user.

    Raises:
      DatasetUnavailable: it is not prepared and cannot be downloaded, or TFDS is missing.
      UserError: it is unknown, damaged, or not a classification of images of one size.
    """
    try:
        from tensorflow_datasets import public_api as tfds  # the package itself hides failures
    except Exception as error:  # not ImportError only: a wrong protobuf raises TypeError
        raise DatasetUnavailable(
            f"{name} needs: pip install -U tensorflow-datasets ({first_line(error)}); "
            "or use --dataset=digits"
        ) from error
    builder = _open_builder(tfds, name, data_dir)
    features, folder = builder.info.features, builder.data_dir
    # A second image of the same shape is that of the other camera (smallnorb).
    images = [features[key] for key in IMAGE_KEYS if key in features]
    label = next((features[key] for key in LABEL_KEYS if key in features), None)
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
    if builder.info.file_format.value == "array_record" and not _has("array_record"):
        raise DatasetUnavailable(
            f"reading {name} in {folder} needs the package array_record, which is available for "
            "Linux and for Macs with Apple silicon; elsewhere use a data set that was prepared as "
            "tfrecord, or --dataset=digits"
        )
    print(f"reading {name} from {folder} (once; cached in {cache_path})", file=sys.stderr)
    source = f"tfds {name} {builder.version} from {data_dir or builder.data_dir_root}"
    try:
        values = *_read_split(builder, "train"), *_read_split(builder, test), label.names, source
        return npz.check(dict(zip(npz.ARRAY_SPECS, map(np.asarray, values), strict=True)))
    except Exception as error:  # TFDS, array_record and PIL raise many types
        raise UserError(f"cannot read {name} from {folder}: {first_line(error)}") from error


def _open_builder(tfds, name, data_dir):
    try:
        if re.fullmatch(r"[a-z][a-z0-9_]*(/[\w.-]+)?(:\d+\.\d+\.\d+)?", name):
            check_features(name, data_dir)
            return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        pass
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"TFDS cannot open {name}: {first_line(error)}") from error
    # No community data sets, here and in the pattern: TFDS looks for those on the network.
    known = ["auto", "digits", *tfds.list_builders(with_community_datasets=False)]
    near = difflib.get_close_matches(name.lower(), known) or ["digits", "mnist"]
    raise UserError(f"unknown data set {name!r}; did you mean {' or '.join(near)}?")


def check_features(name, data_dir):
    """Refuses a prepared data set whose features.json names Python classes that are not TFDS's.

    TFDS imports the modules of the classes.

    Raises:
      UserError: it does, or can't be read.
    """
    usual = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    folder = pathlib.Path(data_dir or usual).expanduser() / re.split("[/:]", name)[0]
    for path in sorted(folder.rglob("features.json")):
        for key, text in _texts(read_json(path)):
            if key in ("pythonClassName", "type") and not text.startswith(OWN_CLASSES):
                raise UserError(f"{path} names the class {text!r}, which is none of TFDS's")


def _texts(value, key=""):
    """Yields all texts of a value of JSON, each with its key."""
    if isinstance(value, dict):
        for name, inside in value.items():
            yield from _texts(inside, name)
    elif isinstance(value, list):
        for inside in value:
            yield from _texts(inside, key)
    elif isinstance(value, str):
        yield key, value


def _prepare(tfds, builder, name, data_dir):
    if data_dir:
        entries = sorted(os.listdir(data_dir))[:9] if os.path.isdir(data_dir) else "no such folder"
        raise UserError(
            f"{name} is not prepared in {data_dir} ({entries}): looked for "
            f"{builder.data_dir}; correct --data_dir"
        )
    problem = None
    if not (_has("tensorflow") and _has("importlib_resources")):
        problem = (
            "TFDS needs more packages for that: pip install tensorflow-cpu importlib_resources"
        )
    elif builder.url_infos:  # TFDS itself would try an unreachable host for minutes
        problem = network_problem(min(builder.url_infos))
    if not problem:
        print(f"preparing {name} with TFDS in {builder.data_dir} (once)", file=sys.stderr)
        config = tfds.download.DownloadConfig(try_download_gcs=False)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                # Without TensorFlow this module reads either format.
                return builder.download_and_prepare(
                    download_config=config,
                    file_format="array_record" if _has("array_record") else "tfrecord",
                )
        except Exception as error:
            problem = f"TFDS failed to: {first_line(error)}"
    raise DatasetUnavailable(
        f"{name} is not prepared in {builder.data_dir_root}, and {problem}; "
        "use --data_dir, or --dataset=digits"
    )


def _has(module):
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # None in sys.modules
        return False


def network_problem(url, seconds=4):
    """Returns why a URL cannot be reached within some seconds, or an empty text if it can."""
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
    image_keys, (label_key, *_) = (
        [key for key in keys if key in features] for keys in (IMAGE_KEYS, LABEL_KEYS)
    )
    size, shape = record.num_examples, features[image_keys[0]].shape
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
    images = np.empty((size, *shape[:-1], channels * len(image_keys)), np.uint8)
    labels = np.empty(size, np.int32)
    for index, example in zip(range(size), examples, strict=True):
        for n, key in enumerate(image_keys):
            if example[key].shape != shape:  # which NumPy might broadcast
                raise ValueError(f"{split} image {index} is {example[key].shape}, not {shape}")
            images[index, ..., n * channels : (n + 1) * channels] = example[key]
        labels[index] = example[label_key]
    return images, labels


def _tfrecords(paths):
    """Yields the records of TFRecord files, without TensorFlow and without checking checksums."""
    for path in paths:
        with open(path, "rb") as file:
            while header := file.read(12):  # length of the record, checksum of the length
                yield file.read(int.from_bytes(header[:8], "little") + 4)[:-4]  # checksum
