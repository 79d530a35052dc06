"""Networks with trained weights: those in the package, in a folder, or on the Hugging Face Hub.

A pretrained network is a folder with three files: ``model.safetensors``, the weights;
``config.json``, the network's configuration, its classes, and what is done to images first; and
``README.md``, a card for readers. Files of others are data: sizes are limited, names and shapes are
those of the configuration, and nothing in them is run.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from capsjax import models
from capsjax.functional import Model, create_model
from capsjax.preprocessing import Preprocessing
from capsjax.pretrained import card, files, weights
from capsjax.pretrained.schema import Description, PretrainedError, from_json, to_json


class Pretrained(NamedTuple):
    """A trained network, ready to be applied."""

    model: Model
    params: Any  # what model.apply takes: parameters, or Variables of a network with statistics
    labels: tuple[str, ...]  # the names of the J classes
    preprocessing: Preprocessing  # from uint8 pixels to the input of the network


def pretrained_names() -> tuple[str, ...]:
    """Return the names of the networks that are part of the package."""
    return tuple(files.packaged())


def describe_pretrained(place: str | os.PathLike) -> Description:
    """Return what config.json of a pretrained network says, without reading its weights.

    Args:
      place: see :func:`load_pretrained`.

    Raises:
      PretrainedError: there is no such network, or it can't be used.
    """
    return _described(files.find_folder(place))


def load_pretrained(place: str | os.PathLike) -> Pretrained:
    """Load a trained network.

    Args:
      place: the name of a packaged network (:func:`pretrained_names`), a folder, or an address
        ``hf://OWNER/NAME``, to which ``@REVISION`` may be added, on the Hugging Face Hub; this
        needs the package ``huggingface_hub``.

    Returns:
      The model, its parameters (:class:`capsjax.Variables` if it has statistics) in float32, the
      names of its classes, and the function that makes its inputs of uint8 images.

    Raises:
      PretrainedError: there is no such network, or its files do not fit each other.
    """
    folder = files.find_folder(place)
    path = folder / files.WEIGHTS
    description = _described(folder)
    try:
        model = create_model(description.network)
        size = weights.size_of(weights.shapes_of(model))
    except Exception as error:  # of any kind: nobody has tried what the file describes
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PretrainedError(f"{folder / files.CONFIG} is of no network: {reason[:99]}") from error
    most = size + files.MOST_CONFIG  # with names and shapes
    data = files.read(path, min(most, files.MOST_WEIGHTS))
    try:
        params = weights.from_bytes(data, model)
    except PretrainedError as error:
        raise PretrainedError(f"{path}: {error}") from error
    return Pretrained(model, params, description.labels, description.preprocessing)


def save_pretrained(
    folder: str | os.PathLike,
    network: models.Config,
    params: Any,
    *,
    labels: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    labels_per_image: int | None = 1,
    facts: Mapping[str, Any] = MappingProxyType({}),
    dtype: str = "float32",
) -> Path:
    """Write a network with its weights to a folder, for :func:`load_pretrained`.

    Args:
      folder: is created; files in it of the same names are replaced. Its name is that of the card.
      network: the configuration.
      params: the parameters of :func:`capsjax.create_model`, or its :class:`capsjax.Variables`.
      labels: the names of the J classes; by default "0", "1", and so on.
      preprocessing: by default pixels of ``network.image_shape`` are divided by 255.
      labels_per_image: 1, 2 for networks of overlapping pairs, None for sets of labels.
      facts: what the card says: texts and numbers. It knows ``data``, ``train_examples``,
        ``recipe``, ``routing``, ``command``, ``commit``, ``seed``, ``steps``, ``device``,
        ``weights``, ``float16``, ``test_errors`` and ``test_examples``.
      dtype: of the parameters in the file, ``float32`` or ``float16``, which has a precision of
        11 bits and half the size.

    Returns:
      The folder.

    Raises:
      PretrainedError: parameters are not those of the network or are not finite, or what is said
        of it can't be read again.
      OSError: the folder can't be written.

    Example:
      >>> import jax, tempfile
      >>> from capsjax import create_model, load_pretrained, preset
      >>> config = preset("capsnet_tiny", num_classes=3)
      >>> params = create_model(config).init(jax.random.key(0))  # or trained ones
      >>> folder = save_pretrained(tempfile.mkdtemp(), config, params, labels=["a", "b", "c"])
      >>> model, params, labels, preprocessing = load_pretrained(folder)
      >>> images = jax.numpy.zeros((2, 28, 28, 1), "uint8")
      >>> model.apply(params, preprocessing(images)).scores.shape, labels
      ((2, 3), ('a', 'b', 'c'))
    """
    if hasattr(network, "routing_implementation"):  # depends on the machine
        network = dataclasses.replace(network, routing_implementation="auto")
    described = Description(
        network,
        tuple(map(str, range(network.num_classes) if labels is None else labels)),
        preprocessing or Preprocessing(tuple(network.image_shape)),
        labels_per_image,
        facts,
    )
    try:
        text = to_json(described)
        described, model = from_json(text), create_model(network)
        _check_inputs(described)
        data = weights.to_bytes(params, dtype)
        weights.from_bytes(data, model)
        _check_limits(text, data)
    except (ValueError, TypeError) as error:
        raise PretrainedError(f"{os.fspath(folder)} is not written: {error}") from error
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    shapes = weights.shapes_of(model)
    about = card.to_markdown(folder.resolve().name, described, shapes, dtype)
    # Without it the folder can't be loaded: new weights never have the classes of older ones.
    (folder / files.CONFIG).unlink(missing_ok=True)
    files.write(folder / files.WEIGHTS, data)
    files.write(folder / files.CARD, about.encode())
    files.write(folder / files.CONFIG, text.encode())
    return folder


def _check_inputs(described: Description) -> None:
    image = jax.ShapeDtypeStruct((1, *described.preprocessing.image_shape), np.uint8)
    made, wanted = jax.eval_shape(described.preprocessing, image), described.network.image_shape
    if made.shape[1:] != tuple(wanted) or made.dtype == np.uint8:
        raise ValueError(
            f"its preprocessing makes {made.dtype} {list(made.shape[1:])} of images, and the "
            f"network takes floats {list(wanted)}"
        )


def _check_limits(text: str, data: bytes) -> None:
    for name, size, most in (
        (files.CONFIG, len(text.encode()), files.MOST_CONFIG),
        (files.WEIGHTS, len(data), files.MOST_WEIGHTS),
    ):
        if size > most:
            raise ValueError(f"{name} would have {size:,} bytes, and at most {most:,} are read")


def _described(folder: Path) -> Description:
    path = folder / files.CONFIG
    data = files.read(path, files.MOST_CONFIG)
    try:
        described = from_json(data.decode())
        _check_inputs(described)
        return described
    except (ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise PretrainedError(f"{path} is not understood: {reason[:300]}") from error
