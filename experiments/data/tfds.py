"""Image classification data sets of TensorFlow Datasets (TFDS) as arrays.

Prepared data sets are read without TensorFlow. Others are prepared in TFDS's default folder,
which takes TensorFlow and a network.
"""

import contextlib
import difflib
import importlib.util
import math
import os
import pathlib
import re
import sys
import threading
from types import MappingProxyType

import numpy as np

from experiments import UserError
from experiments.data import npz
from experiments.data.errors import DatasetUnavailable, first_line
from experiments.data.tfds_records import IMAGE_KEYS, LABEL_KEYS, read_split, stored_split
from experiments.files import read_json

LABELS = ("train_labels", "test_labels")
OWN_CLASSES = "tensorflow_datasets.core.features."


def read(name, data_dir, cache_path, resident_bytes=math.inf, known=MappingProxyType({})):
    """Returns the arrays of a data set of TFDS, which prepares it first if that is necessary.

    Args:
      name: 'name[/config][:version]'.
      data_dir: folder that contains the prepared data set, or None for TFDS's default folder.
      cache_path: where the caller will cache the arrays; it is only mentioned to the user.
      resident_bytes: if the images have more together and are in ArrayRecord files, they are not
        read: the arrays of images are stored images.
      known: train_labels, test_labels, source and checksum of an earlier call, for stored images.

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
    source = f"tfds {name} {builder.version} from {data_dir or builder.data_dir_root}"
    splits, texts = ("train", test), (np.asarray(label.names), np.asarray(source))
    try:
        if _is_larger(builder, splits, images, resident_bytes):
            known = known if str(known.get("source")) == source else {}
            if not known:
                print(f"reading {name} from {folder} (once, for its labels)", file=sys.stderr)
            skip, labels = tfds.decode.SkipDecoding(), map(known.get, LABELS)
            parts = [stored_split(builder, *which, skip) for which in zip(splits, labels)]
            arrays = {"checksum": known["checksum"]} if known else {}
        else:
            print(f"reading {name} from {folder} (once; cached in {cache_path})", file=sys.stderr)
            parts, arrays = [read_split(builder, split) for split in splits], {}
        values = *parts[0], *parts[1], *texts
        return npz.check(dict(zip(npz.ARRAY_SPECS, values, strict=True))) | arrays
    except Exception as error:  # TFDS, array_record and PIL raise many types
        raise UserError(f"cannot read {name} from {folder}: {first_line(error)}") from error


def _is_larger(builder, splits, images, most):
    """Returns whether images have more bytes and can be read by rows."""
    count = sum(builder.info.splits[split].num_examples for split in splits)
    size = count * len(images) * math.prod(images[0].shape)
    return size > most and builder.info.file_format.value == "array_record"


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
