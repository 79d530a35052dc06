"""The reader of every JSON, JSONL and text file that may come from elsewhere.

What such a file says is data: it is a regular file of limited size, its nesting is limited, and it
has the keys and types that are expected, or else it is refused in one line.
"""

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

from experiments import UserError
from experiments.files.text import one_line

MOST_BYTES = 16 * 2**20  # of a file that is read whole
DEEPEST = 8  # lists and objects inside each other
BLOCK = 2**20  # bytes that are hashed at a time
_BINARY = getattr(os, "O_BINARY", 0)  # Windows
_NO_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)  # for a FIFO


class BadFile(UserError):
    """A file that can't be used; the message is one line that names it and says why."""


def _open(path: Path | str, most: float):
    try:
        file = open(os.open(path, os.O_RDONLY | _BINARY | _NO_WAITING), "rb")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadFile(f"{one_line(path)} can't be read: {reason}") from error
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        file.close()
        raise BadFile(f"{one_line(path)} is not a regular file")
    if status.st_size > most:
        file.close()
        raise BadFile(
            f"{one_line(path)} has {status.st_size:,} bytes, and more than {most:,} are not read"
        )
    return file


def read_bytes(path: Path | str, most: int = MOST_BYTES) -> bytes:
    """Returns the contents of a regular file of at most ``most`` bytes.

    Raises:
      BadFile: it is missing, something else, or larger.
    """
    try:
        with _open(path, most) as file:
            found = file.read(most + 1)
    except OSError as error:
        raise BadFile(f"{one_line(path)} can't be read: {error.strerror}") from error
    if len(found) > most:
        raise BadFile(f"{one_line(path)} has more than {most:,} bytes")
    return found


def read_text(path: Path | str, most: int = MOST_BYTES) -> str:
    """Returns a text file, UTF-8 with or without a byte order mark.

    Raises:
      BadFile: as :func:`read_bytes`, or it is no such text.
    """
    try:
        return read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadFile(f"{one_line(path)} is not text ({error.reason})") from error


def sha256(path: Path | str) -> str:
    """Returns the SHA-256 of a regular file, in hexadecimal digits.

    Raises:
      BadFile: it is missing, something else, or can't be read.
    """
    digest = hashlib.sha256()
    try:
        with _open(path, float("inf")) as file:
            while block := file.read(BLOCK):
                digest.update(block)
    except OSError as error:
        raise BadFile(f"{one_line(path)} can't be read: {error.strerror}") from error
    return digest.hexdigest()


def parse(text: str | bytes) -> Any:
    """Returns the value of a JSON text, nested at most :data:`DEEPEST` deep.

    Raises:
      ValueError: it is no such text.
    """
    try:
        found = json.loads(text)
    except RecursionError:
        found = None
    else:
        if is_plain(found):
            return found
    raise ValueError(f"nested deeper than {DEEPEST}, or with numbers beyond 64 bits")


def read_json(path: Path | str, schema: Any = dict, most: int = MOST_BYTES) -> Any:
    """Returns the value of a JSON file that has the form of :func:`check`.

    Raises:
      BadFile: it has not, or can't be read.
    """
    try:
        return check(parse(read_text(path, most)), schema)
    except ValueError as error:
        raise BadFile(f"{one_line(path)} is not understood: {one_line(error)}") from error


def is_integer(value: Any) -> bool:
    """Returns whether a value is an integer of 64 bits."""
    return type(value) is int and -(2**63) <= value < 2**63


def is_number(value: Any) -> bool:
    """Returns whether a value is a number, which may be infinite or NaN."""
    return type(value) is float or is_integer(value)


def is_plain(value: Any, depth: int = DEEPEST) -> bool:
    """Returns whether a value of JSON is nested at most ``depth`` deep and has usual numbers."""
    if isinstance(value, (list, dict)):
        inside = value.values() if isinstance(value, dict) else value
        return depth > 0 and all(is_plain(one, depth - 1) for one in inside)
    return value is None or isinstance(value, (str, bool)) or is_number(value)


def check(value: Any, schema: Any, where: str = "it") -> Any:
    """Returns a value of JSON unchanged if it has the form of a schema.

    Args:
      value: of :func:`parse`.
      schema: a type; a function that returns whether the value is legal; ``[schema]`` for a list;
        or an object, ``{name: schema}``: a name that ends in ``?`` may be missing, and ``*`` is
        the schema of all names that are not listed, which are refused without it.
      where: what is checked, for the message.

    Raises:
      ValueError: it has another form; the message says where.
    """
    if isinstance(schema, list):
        for number, one in enumerate(check(value, list, where)):
            check(one, schema[0], f"{where}[{number}]")
    elif isinstance(schema, dict):
        names = {name.removesuffix("?"): name for name in schema if name != "*"}
        check(value, dict, where)
        for name in names:
            if name not in value and not names[name].endswith("?"):
                raise ValueError(f"{where} has no {name!r}")
        for name, one in value.items():
            if name not in names and "*" not in schema:
                raise ValueError(f"{name[:40]!r} in {where} is unknown")
            check(one, schema[names.get(name, "*")], f"{name[:40]!r}")
    elif isinstance(schema, type):
        if type(value) is not schema:
            raise ValueError(f"{where} is {_kind(value)}, not {_kind(schema())}")
    elif not schema(value):
        raise ValueError(f"{where} is {repr(value)[:40]}")
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    return names.get(type(value), "null" if value is None else "a number")
