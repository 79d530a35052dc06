"""Images of any number of channels as grey or RGB images that can be drawn."""

from collections.abc import Callable

import numpy as np

LEAST_RANGE = 0.1  # of a component, of the range of the first; noise is not stretched further


def note_of_channels(channels: int) -> str:
    """Returns what a title says of how images are drawn; nothing of grey and RGB images."""
    if channels in (1, 3):
        return ""
    if channels == 2:
        return "; 2 channels side by side"
    return f"; colours: the first three principal components of {channels} channels"


def drawable(
    channels: int, examples: Callable[[], np.ndarray]
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns how images of a data set are drawn.

    One channel is grey and three are RGB. Two, such as a stereo pair, are drawn side by side. Of
    others the first three principal components over all pixels are red, green and blue.

    Args:
      channels: C.
      examples: returns floats ``[N, H, W, C]``, whose principal components are taken.

    Returns:
      A function from images ``[..., H, W, C]`` to floats ``[..., H, w, c]``, c 1 or 3, in 0..1
      where the examples are.
    """
    if channels in (1, 3):
        return lambda x: x
    if channels == 2:
        return side_by_side
    return principal_colours(examples())


def side_by_side(image: np.ndarray) -> np.ndarray:
    """Returns two channels ``[..., H, W, 2]`` next to each other, ``[..., H, 2 W, 1]``."""
    return np.concatenate(np.split(image, 2, -1), axis=-2)


def principal_colours(images: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the projection on the first three principal components of these images.

    Each component is scaled so that nearly all pixels of the images lie in 0..1. Its sign is such
    that the channel that counts most in it is bright where it is large.

    Args:
      images: floats ``[N, H, W, C]``, C at least 3.
    """
    pixels = np.float64(images).reshape(-1, images.shape[-1])
    mean = pixels.mean(axis=0)
    _, vectors = np.linalg.eigh(np.cov(pixels.T))
    axes = vectors[:, ::-1][:, :3]  # largest first
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), range(3)])
    low, high = np.quantile((pixels - mean) @ axes, (0.01, 0.99), axis=0)
    width = np.maximum(high - low, LEAST_RANGE * (high - low).max())
    width = np.where(width > 0, width, 1.0)  # images of a single colour
    middle = (low + high) / 2
    return lambda x: np.clip(((np.float64(x) - mean) @ axes - middle) / width + 0.5, 0, 1)
