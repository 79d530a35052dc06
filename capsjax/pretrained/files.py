"""Where pretrained networks are, and the reading and writing of their files."""

import difflib
import os
import stat
import tempfile
from pathlib import Path

from capsjax.pretrained.schema import PretrainedError

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
MOST_CONFIG = 2**20  # bytes of config.json
MOST_WEIGHTS = 2**31  # bytes of model.safetensors
HUB = "hf://"


def packaged() -> dict[str, Path]:
    """Return the folders of the networks that are part of the package, by name."""
    folders = sorted(Path(__file__).parent.iterdir())
    return {path.name: path for path in folders if (path / CONFIG).is_file()}


def find_folder(place: str | os.PathLike) -> Path:
    """Return the folder of a pretrained network.

    Args:
      place: the name of a packaged network, a folder, or ``hf://OWNER/NAME`` or
        ``hf://OWNER/NAME@REVISION`` on the Hugging Face Hub.

    Raises:
      PretrainedError: there is no such network, or it can't be fetched.
    """
    text = os.path.expanduser(place)
    if text in packaged():
        return packaged()[text]
    if text.startswith(HUB):
        return _fetch(text)
    if Path(text).is_dir():
        return Path(text)
    near = difflib.get_close_matches(text, packaged(), 1)
    names = ", ".join(packaged()) or "none"
    hint = f"; did you mean {near[0]}?" if near else f" (packaged networks: {names})"
    raise PretrainedError(f"{text} is neither a folder nor a packaged network{hint}")


def _fetch(address: str) -> Path:
    """Fetch the three files of a network from the Hugging Face Hub, into its own cache."""
    name, _, revision = address.removeprefix(HUB).partition("@")
    if name.count("/") != 1 or not all(name.split("/")):
        raise PretrainedError(f"{address}: write it as {HUB}OWNER/NAME or {HUB}OWNER/NAME@REVISION")
    try:
        import huggingface_hub
    except ImportError as error:
        raise PretrainedError(f"{address} needs a package: pip install huggingface_hub") from error
    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision or None, allow_patterns=[WEIGHTS, CONFIG, CARD]
        )
    except Exception as error:  # of many types, of several packages
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PretrainedError(f"{address} can't be fetched: {reason[:200]}") from error
    return Path(folder)


def read(path: Path, most: int) -> bytes:
    """Return the contents of a regular file of at most ``most`` bytes.

    Raises:
      PretrainedError: it is missing, something else, or larger.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(path, flags), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise PretrainedError(f"{path} is not a regular file")
            data = file.read(most + 1)
    except OSError as error:
        raise PretrainedError(f"{path} can't be read: {error.strerror}") from error
    if len(data) > most:
        raise PretrainedError(f"{path} has more than the {most:,} bytes that it can have")
    return data


def write(path: Path, data: bytes) -> None:
    """Write a file in one move; a link of its name is replaced, not followed."""
    descriptor, name = tempfile.mkstemp(path.suffix, ".new-", path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.chmod(name, 0o644)  # only for its owner until now
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
