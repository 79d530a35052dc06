"""Images from files, made into what a network was trained on. Read by Pillow alone."""

import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from experiments.config import UserError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SMALLEST, LARGEST = 4, 1024  # pixels of a side; larger images are made smaller as they are read
GREY = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601
BOX = 20 / 28  # side of the box of a digit, as a share of the image
INK = 0.2  # of the strongest stroke; what is fainter does not count for the box
UNIFORM = 0.25  # borders of training images that differ by more say nothing about a background


class Unreadable(Exception):
    """A file that holds no usable image; the message is one line without the file's name."""


def facts(dataset) -> dict:
    """What must be known of a data set to show its networks other images.

    ``border`` is where the brightness of a training image's border lies, in 0..1: the 5th and the
    95th percentile, over the images, of the median of its outermost pixels.
    """
    medians = [border(image) for image in dataset.train_images[:1000]]
    return {
        "image_shape": list(dataset.image_shape),
        "class_names": list(dataset.class_names),
        "border": (np.quantile(medians, (0.05, 0.95)) / 255).round(4).tolist(),
    }


def find(paths: Iterable[str]) -> list[Path]:
    """Files as they are named; of folders the images in them, by suffix and in order.

    Raises:
      UserError: a folder that can't be read, or holds no images.
    """
    suffixes = {s for s, name in Image.registered_extensions().items() if name in FORMATS}
    found = []
    for path in map(Path, paths):
        try:
            names = sorted(path.iterdir()) if path.is_dir() else None
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from error
        if names is None:
            found.append(path)
            continue
        inside = [p for p in names if p.suffix.lower() in suffixes and p.name[0] != "."]
        if not inside:
            raise UserError(f"{path} holds no images ({' '.join(sorted(suffixes))})")
        found += inside
    return found


def read(path: Path) -> np.ndarray:
    """An image file: float32 ``[H, W]`` or ``[H, W, 3]`` in 0..1, upright, sides up to LARGEST.

    Of several frames the first. Transparent pixels are black behind what is bright and white
    behind what is dark.

    Raises:
      Unreadable: it isn't there, is damaged, has too few pixels or so many that Pillow warns, or
        its numbers have no known range.
    """
    try:
        if not path.stat().st_size:
            raise Unreadable("an empty file")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with Image.open(path, formats=FORMATS) as file:
                if min(file.size) < SMALLEST:
                    raise Unreadable(f"{file.width}x{file.height} pixels are too few")
                return _pixels(ImageOps.exif_transpose(file))
    except Unreadable:
        raise
    except Image.UnidentifiedImageError as error:
        raise Unreadable(f"not an image of a known kind ({', '.join(FORMATS)})") from error
    except OSError as error:
        raise Unreadable(error.strerror or f"damaged: {error}") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise Unreadable(f"too many pixels, more than {Image.MAX_IMAGE_PIXELS:,}") from error
    except Exception as error:  # Pillow's decoders raise what they like
        raise Unreadable(f"damaged: {error or type(error).__name__}") from error


def _pixels(image):
    if image.mode.startswith("I"):
        values = np.asarray(image, np.float32) / 65535
    elif image.mode == "F":
        values = np.asarray(image, np.float32)
    else:
        transparent = "transparency" in image.info or image.mode[-1] in "Aa"
        kind = "RGBA" if transparent else "L" if image.mode in ("1", "L") else "RGB"
        image = image.convert(kind)
        image.thumbnail((LARGEST, LARGEST))
        values = np.asarray(image, np.float32) / 255
        return _on_ground(values[..., :3], values[..., 3]) if transparent else values
    if not (values.min() >= 0 and values.max() <= 1):  # also where there are NaNs
        raise Unreadable("pixels that are neither 8 nor 16 bits nor floats in 0..1")
    image = Image.fromarray(values)
    image.thumbnail((LARGEST, LARGEST))
    return np.asarray(image)


def _on_ground(color, alpha):
    if not alpha.any():
        raise Unreadable("wholly transparent")
    bright = np.average(color @ np.float32(GREY), weights=alpha) > 0.5
    return color * alpha[..., None] + (1 - alpha[..., None]) * np.float32(not bright)


def with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Grey or colour ``[H, W, C]`` of ``[H, W]`` or ``[H, W, 3]``; C is 1 or 3."""
    if image.ndim == 2:
        return np.repeat(image[..., None], channels, axis=2)
    return image if channels == 3 else (image @ np.float32(GREY))[..., None]


def border(image: np.ndarray) -> float:
    """Median of the outermost pixels of ``[H, W, C]``, in the image's own units."""
    return float(np.median(_outermost(image).mean(axis=1)))


def _outermost(image):
    return np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])


def is_negative(image: np.ndarray, borders: tuple[float, float]) -> bool:
    """Whether an image has the background that the training images have, but negated.

    Args:
      image: ``[H, W, C]`` in 0..1. borders: of the training images, see :func:`facts`.

    Returns:
      False where their borders have no common brightness, as those of photographs.
    """
    low, high = borders
    usual, own = (low + high) / 2, border(image)
    return high - low <= UNIFORM and abs(1 - own - usual) < abs(own - usual)


def pad(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The whole image ``[H, W, C]`` in this height and width, in the middle, ratio kept.

    Around it is the colour of its own border.
    """
    scale = min(np.divide(shape, image.shape[:2]))
    small = resize(image, scale)
    out = np.empty((*shape, image.shape[2]), np.float32)
    out[:] = np.median(_outermost(image), axis=0)
    return _paste(out, small, (np.subtract(shape, small.shape[:2])) // 2)


def centre(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """What is brighter than the border, as MNIST's digits were placed (LeCun, Cortes, Burges).

    It is cut out and brought to a box of 20/28 of the shape, ratio kept; its centre of mass is
    brought to pixel (H/2, W/2), counted from 0, as far as the box stays inside. The border becomes
    0 and the strongest stroke 1.
    """
    ink = np.clip(image - np.median(_outermost(image), axis=0), 0, None)
    out = np.zeros((*shape, image.shape[2]), np.float32)
    if not ink.max():
        return out
    ink /= ink.max()
    rows, columns = (np.flatnonzero((ink > INK).any(axis=(k, 2))) for k in (1, 0))
    cut = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    small = resize(cut, BOX * min(shape) / max(cut.shape[:2]))
    small /= small.max()
    mass = small.sum(axis=2)
    middle = [np.average(range(n), weights=mass.sum(axis=1 - k)) for k, n in enumerate(mass.shape)]
    place = np.rint(np.divide(shape, 2) - middle).astype(int)
    return _paste(out, small, np.clip(place, 0, np.subtract(shape, mass.shape)))


def resize(image: np.ndarray, scale: float) -> np.ndarray:
    """An image ``[H, W, C]`` at another scale, with what a pixel then covers averaged."""
    height, width = (max(1, round(n * scale)) for n in image.shape[:2])
    channels = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(image[..., k])).resize(
                (width, height), Image.Resampling.BILINEAR
            )
        )
        for k in range(image.shape[2])
    ]
    return np.stack(channels, axis=2)


def _paste(out, small, place):
    top, left = place
    out[top : top + small.shape[0], left : left + small.shape[1]] = small
    return out
