"""Pretrained networks, read and written: see :func:`capsjax.load_pretrained`."""

from pathlib import Path

import capsjax
from experiments.config import UserError
from experiments.exchange.network import Source, is_ensemble
from experiments.files import one_line


def read(place: str) -> Source:
    """Returns a pretrained network.

    Args:
      place: its name, folder or address.

    Raises:
      UserError: there is no such network, or it can't be used.
    """
    try:
        description = capsjax.describe_pretrained(place)
        found = capsjax.load_pretrained(place)
    except capsjax.PretrainedError as error:
        raise UserError(f"--model={place}: {one_line(error)}") from error
    return Source(
        place,
        description.network,
        found.params,
        found.preprocessing,
        tuple(found.preprocessing.image_shape),
        tuple(found.labels),
        description.labels_per_image,
        found.preprocessing,
    )


def write(folder: Path, source: Source, name: str, facts: dict) -> list[str]:
    """Writes a network for :func:`capsjax.load_pretrained`, and returns what was written.

    Args:
      folder: which exists. source: the network. name: of the network, in its card.
      facts: what the card says, see :func:`capsjax.save_pretrained`.

    Raises:
      UserError: it is an ensemble, or can't be saved.
    """
    if is_ensemble(source.variables):
        raise UserError(
            "--format=safetensors: an ensemble is several networks, and the mean of their weights "
            "is none; --format=onnx averages their scores"
        )
    try:
        # The card has the name of the folder, which is a temporary one.
        inner = capsjax.save_pretrained(
            folder / name,
            source.config,
            source.variables,
            labels=source.labels,
            preprocessing=source.preprocessing,
            labels_per_image=source.count,
            facts=facts,
        )
    except capsjax.PretrainedError as error:
        raise UserError(one_line(error)) from error
    files = sorted(inner.iterdir())
    for file in files:
        file.rename(folder / file.name)
    inner.rmdir()
    return [file.name for file in files]
