"""Which images a network recognizes, as text in JSON files."""

import base64

import numpy as np


def pack(correct: np.ndarray) -> str:
    """Returns booleans ``[N]`` as text: one bit each, in base64."""
    return base64.b64encode(np.packbits(correct)).decode()


def unpack(text: str, count: int) -> np.ndarray:
    """Returns the ``count`` booleans that :func:`pack` has packed."""
    packed = np.frombuffer(base64.b64decode(text), np.uint8)
    return np.unpackbits(packed, count=count).astype(bool)
