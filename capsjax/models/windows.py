"""The squares that convolutions slide over an image: the smallest image, and where squares lie."""

from collections.abc import Callable, Iterable
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


def centres(windows: Iterable[Window], count: int) -> list[float]:
    """Compute the centres, in pixels, of the squares of an image that a row of capsules sees.

    Args:
      windows: of all layers up to the capsules, lowest first. A padded window counts as centred.
      count: number of the capsules.

    Example:
      >>> centres([Window(5, 2, False), Window(3, 1, False)], 3)
      [4.0, 6.0, 8.0]
    """
    first, step = 0.0, 1
    for kernel, stride, padded in windows:
        first += 0 if padded else step * (kernel - 1) / 2
        step *= stride
    return [first + step * n for n in range(count)]


# Coordinates of a row of capsules: (centres, their squares of pixels; side of the image) -> numbers
COORDINATES: dict[str, Callable[[list[float], int], list[float]]] = {
    "none": lambda centres, side: [0.0] * len(centres),
    # Hinton, Sabour & Frosst (2018), in their code: pixels from the middle of the image, / 100.
    "pixels": lambda centres, side: [(c - (side + 1) // 2) / 100 for c in centres],
    # Gritzman (2019)
    "grid": lambda centres, side: [(n + 0.5) / len(centres) for n in range(len(centres))],
    # Ribeiro, Leontidis & Kollias (2020)
    "tenths": lambda centres, side: [(n + 1) / (10 * len(centres)) for n in range(len(centres))],
}
