"""Arrays of other programs by name: files of NumPy, safetensors, and HDF5 as Keras writes it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from experiments.config import UserError
from experiments.data import npz
from experiments.data.errors import first_line
from experiments.files import check_memory, local_path, one_line, read_bytes

MOST_BYTES = 2 * 2**30  # of a file
MOST_ARRAYS = 1000
SUFFIXES = (".npz", ".safetensors", ".h5", ".hdf5")


def read(place: str) -> dict[str, np.ndarray]:
    """Returns the arrays of numbers in a file, float64.

    Slashes in names become dots, and Keras's ``:0`` at their end is left out. Nothing pickled is
    loaded.

    Args:
      place: the file, ``.npz``, ``.safetensors`` or ``.h5``.

    Raises:
      UserError: it can't be read, is something else, or has arrays that are no finite numbers.
    """
    path = local_path(place, "weights")
    if path.suffix not in SUFFIXES:
        legal = ", ".join(SUFFIXES)
        raise UserError(f"--weights={place} must be one of {legal}; {_advice(path.suffix)}")
    readers = {".npz": _npz, ".safetensors": _safetensors}
    try:
        found = dict(readers.get(path.suffix, _hdf5)(path))
    except UserError:
        raise
    except Exception as error:  # zipfile, zlib, NumPy and HDF5 raise many types
        reason = (isinstance(error, OSError) and error.strerror) or first_line(error)
        raise UserError(f"--weights={place}: {one_line(reason)}") from error
    for name, value in found.items():
        if value.dtype.kind not in "fiu" or not np.isfinite(value).all():
            raise UserError(f"--weights={place}: {one_line(name)} is no array of finite numbers")
    return {_plain(name): np.float64(value) for name, value in found.items()}


def _advice(suffix: str) -> str:
    if suffix in (".pt", ".pth", ".pkl", ".bin"):
        # Reading them would run code that the file contains.
        return (
            "pickled files are not read, for safety: in PyTorch, safetensors.torch.save_file("
            'model.state_dict(), "weights.safetensors")'
        )
    return "numpy.savez writes the first"


def _plain(name: str) -> str:
    return name.removesuffix(":0").replace("/", ".")


def _npz(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    with npz.opened(str(path)) as stored:
        yield from ((name, stored[name]) for name in stored)


def _safetensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    data = read_bytes(path, MOST_BYTES)
    try:
        yield from safetensors.load(data).items()
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"no safetensors file of usual types: {first_line(error)}") from error


def _hdf5(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the data sets of a file; links to other files are not followed."""
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"--weights={path} needs a package: pip install h5py") from error
    if not path.is_file():
        raise FileNotFoundError(2, "No such file or directory")
    with h5py.File(path, "r") as file:
        found = []

        def visit(name, one):
            outside = isinstance(one, h5py.Dataset) and (one.external or one.is_virtual)
            if isinstance(one, h5py.Dataset) and not outside and one.dtype.kind in "fiu":
                found.append((name, one))

        file.visititems(visit)
        if len(found) > MOST_ARRAYS:
            raise ValueError(f"{len(found):,} arrays")
        need = 3 * sum(8 * one.size for _, one in found)
        check_memory(need, "reading the weights", "a smaller file")
        for name, one in found:
            # The optimizer of a whole saved model is not part of the network.
            if not name.startswith("optimizer_weights"):
                yield name, one[()]
