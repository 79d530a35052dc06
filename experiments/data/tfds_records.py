"""The examples of a prepared data set of TFDS: all in memory, or read from its files by rows."""

import numpy as np

from experiments import UserError
from experiments.data.errors import first_line
from experiments.data.stored_images import StoredImages

IMAGE_KEYS = ("image", "image2")  # names of features in TFDS
LABEL_KEYS = ("label", "label_category")


class InRecords:
    """The images of a split in ArrayRecord files, see :class:`StoredImages`.

    Args:
      source: of TFDS, with random access.
      image_keys: features whose channels make up an image.
      shape: of one of them.
    """

    decodes = True

    def __init__(self, source, image_keys: list[str], shape: tuple[int, int, int]):
        self._source, self._keys, self._shape = source, image_keys, shape
        self.shape = (len(source), *shape[:-1], shape[-1] * len(image_keys))

    def __call__(self, row: int) -> np.ndarray:
        """Returns an image.

        Raises:
          UserError: it is damaged, or has another shape.
        """
        try:
            return _image(self._source[row], self._keys, self._shape, row)
        except Exception as error:  # TFDS, array_record and PIL raise many types
            raise UserError(f"cannot read image {row}: {first_line(error)}") from error


def _image(example, keys, shape, where):
    for key in keys:
        if example[key].shape != shape:  # which NumPy might broadcast
            raise ValueError(f"image {where} is {example[key].shape}, not {shape}")
    return np.concatenate([example[key] for key in keys], axis=-1)


def _keys(features):
    """The names of the features that are images, and of the label."""
    images, labels = ([key for key in keys if key in features] for keys in (IMAGE_KEYS, LABEL_KEYS))
    return images, labels[0]


def stored_split(builder, split, labels, skip_decoding):
    """Returns the images of a split, stored ones, and its labels.

    Args:
      builder: of a data set that was prepared as ArrayRecord files.
      split: name of the split.
      labels: those of an earlier call, or None.
      skip_decoding: TFDS's decoder of this name, for a look at the labels alone.
    """
    features = builder.info.features
    keys, label = _keys(features)
    source = builder.as_data_source(split=split, file_format="array_record")
    if labels is None:
        options = {"decoders": dict.fromkeys(keys, skip_decoding)}
        records = builder.as_data_source(split=split, file_format="array_record", **options)
        labels = np.array([example[label] for example in _examples(records)], np.int32)
    return StoredImages(InRecords(source, keys, features[keys[0]].shape)), labels


def _examples(source):
    """Yields the examples of a source with random access, in order."""
    for start in range(0, len(source), 1000):
        yield from source.__getitems__(range(start, min(start + 1000, len(source))))


def read_split(builder, split):
    """Returns the images and labels of a split of a prepared data set, arrays."""
    features, record = builder.info.features, builder.info.splits[split]
    keys, label = _keys(features)
    size, shape = record.num_examples, features[keys[0]].shape
    if builder.info.file_format.value == "tfrecord":
        examples = map(features.deserialize_example_np, _tfrecords(record.filepaths))
    else:
        examples = _examples(builder.as_data_source(split=split, file_format="array_record"))
    images = np.empty((size, *shape[:-1], shape[-1] * len(keys)), np.uint8)
    labels = np.empty(size, np.int32)
    for index, example in zip(range(size), examples, strict=True):
        images[index] = _image(example, keys, shape, f"{index} of {split}")
        labels[index] = example[label]
    return images, labels


def _tfrecords(paths):
    """Yields the records of TFRecord files, without TensorFlow and without checking checksums."""
    for path in paths:
        with open(path, "rb") as file:
            while header := file.read(12):  # length of the record, checksum of the length
                yield file.read(int.from_bytes(header[:8], "little") + 4)[:-4]  # checksum
