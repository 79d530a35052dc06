"""The squares that convolutions slide over an image, and the smallest image for them."""

from collections.abc import Iterable
from typing import NamedTuple


class Window(NamedTuple):
    """What a layer that slides a square over its input needs of it."""

    kernel: int
    stride: int
    padded: bool  # with zeros, so that the kernel may be larger than the input


def smallest_image(windows: Iterable[Window]) -> int:
    """Compute the side of the smallest image on which layers, lowest first, can be computed."""
    side = 1
    for window in reversed(list(windows)):
        side = (side - 1) * window.stride + (1 if window.padded else window.kernel)
    return side
