"""The pixels of user-provided arrays as uint8 ``[N, H, W, C]``, or one line that says why not."""

import numpy as np

from experiments.data.stored_images import StoredImages

SMALLEST_SIDE = 4  # pixels of an image
MOST_ROWS_AS_CHANNELS = 4  # a second axis this short is channels where the last one is longer
ROUNDING = 1e-4  # by which floats in 0..1 may leave this range


def as_images(name: str, images: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Converts images to uint8 ``[N, H, W, C]``, where it is clear what they mean.

    Stored images are returned as they are: readers give uint8.

    Args:
      name: of the array, for messages.
      images: ``[N, H, W]`` or ``[N, H, W, C]``: integers or whole floats in 0..255, floats in 0..1,
        or booleans.

    Returns:
      The images, and a line about each thing that the user should know.

    Raises:
      ValueError: they mean something else, or it is not clear what; the message says how to convert
        them.
    """
    if isinstance(images, StoredImages):
        return images, []
    images, notes = _with_channels(name, images)
    pixels, how = _to_uint8(name, images)
    if pixels.size and pixels.max() <= 1:
        raise ValueError(
            f"{name}: the largest pixel is {_number(images.max())}, nearly black ({images.dtype}); "
            f"floats must not be cast or divided twice, images of 0 and 1 need {name} * 255"
        )
    return pixels, [*notes, *([f"{name} are {images.dtype}, {how}"] if how else [])]


def _with_channels(name, images):
    shape = "x".join(map(str, images.shape))
    if images.ndim not in (3, 4):
        cure = "give [N, H, W] or [N, H, W, C]"
        if images.ndim == 5:
            cure += f", of volumes slices as channels: {name}.reshape(*{name}.shape[:3], -1)"
        elif images.ndim == 2:
            cure += f": {name}.reshape(-1, H, W)"
        raise ValueError(f"{name} are {shape}, not images; {cure}")
    if images.ndim == 3:
        images = images[..., None]
    _, height, width, channels = images.shape
    notes = []
    if channels > min(height, width):
        turned = f"np.moveaxis({name}, 1, -1)"
        if height <= MOST_ROWS_AS_CHANNELS:
            raise ValueError(f"{name} are {shape}, channels first; channels must be last: {turned}")
        notes = [
            f"{name} are taken as {height}x{width} pixels with {channels} channels; if channels "
            f"come first, use {turned}"
        ]
    if min(height, width) < SMALLEST_SIDE or not channels:
        raise ValueError(
            f"{name} are {shape}: fewer than {SMALLEST_SIDE}x{SMALLEST_SIDE} pixels, or no channel"
        )
    return images, notes


def _to_uint8(name, images):
    """Returns the pixels as uint8, and how they were converted if they were."""
    kind, dtype = images.dtype.kind, images.dtype
    if dtype == np.uint8 or not images.size:
        return images.astype(np.uint8, copy=False), ""
    if kind == "b":
        return images.astype(np.uint8) * np.uint8(255), "True taken as white (255)"
    if kind not in "iuf":
        raise ValueError(f"{name} are {dtype}, not numbers; give uint8 in 0..255 or floats in 0..1")
    if not np.isfinite(images).all():
        raise ValueError(f"{name} contain NaN or infinity; np.nan_to_num({name}) replaces them")
    low, high = images.min(), images.max()
    if kind == "f" and -ROUNDING <= low and high <= 1 + ROUNDING:
        # In float32 at least, whose rounding is too fine to matter; a large copy is made only once.
        scaled = np.multiply(images, 255, dtype=np.promote_types(dtype, np.float32))
        pixels = np.rint(scaled, out=scaled).clip(0, 255).astype(np.uint8)
        return pixels, "taken as 0 (black) to 1 (white)"
    if 0 <= low and high <= 255 and (kind != "f" or (images == np.rint(images)).all()):
        return images.astype(np.uint8), "taken as 0 (black) to 255 (white)"
    raise ValueError(
        f"{name} are {dtype} from {_number(low)} to {_number(high)}, and their black and white are "
        f"not known; {_conversion(name, kind, low, high)}"
    )


def _conversion(name, kind, low, high):
    if low >= 0 and high <= 255:
        return f"if they are 0 and 255, use np.uint8(np.rint({name}))"
    if kind == "u" and high > 255:
        return f"if they are 0 and 65535, use np.uint8({name} // 257)"
    low, high = _number(low), _number(high)
    return (
        f"if they are the smallest and the largest number, use "
        f"np.uint8(255 * (np.float64({name}) - ({low})) / ({high} - ({low})))"
    )


def _number(value):
    return f"{float(value):.6g}"
