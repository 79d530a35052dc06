"""Pretrained networks, read and written: see :func:`capsjax.load_pretrained`."""

from pathlib import Path

import capsjax
from experiments.analysis.publish import publish
from experiments.analysis.saved_run import SavedRun
from experiments.config import UserError
from experiments.exchange.network import Source
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
        tuple(found.labels),
        description.labels_per_image,
    )


def write(folder: Path, run: SavedRun, name: str) -> list[str]:
    """Writes the network of a finished run for :func:`capsjax.load_pretrained`.

    Args:
      folder: which exists.
      run: opened with its examples.
      name: of the network, in its card.

    Raises:
      UserError: see :func:`experiments.analysis.publish.publish`.
    """
    inner = folder / name  # the card has the name of its folder, which is a temporary one
    facts = publish(run, inner)
    files = sorted(inner.iterdir())
    for file in files:
        file.rename(folder / file.name)
    inner.rmdir()
    right = f"{facts['test_errors']:,} of {facts['test_examples']:,} test images are wrong"
    return [", ".join(file.name for file in files), right]
