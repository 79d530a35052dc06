"""The size and the channels that the images of a data set get."""

import collections

import numpy as np

from experiments import UserError
from experiments.data import image_files
from experiments.data.pixels import SMALLEST_SIDE

LARGEST_AUTO = 64  # pixels of a side with --image_size=auto
LARGEST_SIDE = image_files.LARGEST
GREY_TOLERANCE = 0.02  # of red, green and blue, of 0..1: what JPEG makes of grey pixels


def crop(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Covers this height and width with an image ``[H, W, C]``, aspect ratio kept, and cuts it."""
    small = image_files.resize(image, max(np.divide(shape, image.shape[:2])))
    top, left = ((n - m) // 2 for n, m in zip(small.shape, shape))
    return small[top : top + shape[0], left : left + shape[1]]


# How an image gets a size, by the values of --resize. Each leaves an image of that size as it is.
RESIZE = {"pad": image_files.pad, "crop": crop, "stretch": image_files.stretch}


def choose(text: str, sizes: list[tuple[int, int]]) -> tuple[tuple[int, int], str]:
    """Returns the height and width of all images, and in a few words where they are from.

    Args:
      text: the value of ``--image_size``.
      sizes: of the files.

    Raises:
      UserError: the text is no size.
    """
    if text != "auto":
        try:
            height, width = map(int, text.split(",") if "," in text else (text, text))
        except ValueError:
            height = width = 0
        if not SMALLEST_SIDE <= min(height, width) <= max(height, width) <= LARGEST_SIDE:
            raise UserError(
                f"--image_size={text}: give auto, one side or H,W, in pixels from "
                f"{SMALLEST_SIDE} to {LARGEST_SIDE}"
            )
        return (height, width), "as asked for"
    usual, count = collections.Counter(sizes).most_common(1)[0]
    how = "the size of all" if count == len(sizes) else f"the size of {count} of them"
    if 2 * count < len(sizes):
        usual, how = np.median(sizes, axis=0), "the middle one of their sizes"
    scale = min(1, LARGEST_AUTO / max(usual))
    shape = tuple(max(SMALLEST_SIDE, round(float(n * scale))) for n in usual)
    if scale < 1:
        how += f" ({usual[0]:g}x{usual[1]:g}), reduced to {LARGEST_AUTO} at most"
    return shape, f"{how}; --image_size=H,W gives another"


def has_colours(image: np.ndarray) -> bool:
    """Returns whether an image ``[H, W]`` or ``[H, W, 3]`` has more than shades of grey."""
    return image.ndim == 3 and bool((np.ptp(image, axis=2) > GREY_TOLERANCE).any())
