"""Reading image files with Pillow, and converting them to the inputs of a trained network."""

import contextlib
import functools
import io
import stat
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from experiments import UserError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SMALLEST, LARGEST = 4, 1024  # pixels of a side; larger images are reduced when they are read
LARGEST_FILE = 256 * 2**20  # bytes
GREY_WEIGHTS = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601
DIGIT_BOX = 20 / 28  # side of the box of a digit, as a fraction of the image
INK_THRESHOLD = 0.2  # as a fraction of the strongest stroke; fainter pixels are ignored for the box
UNIFORM_BORDER = 0.25  # training images whose borders differ by more have no common background


class UnreadableImage(Exception):
    """A file without a usable image; the message is one line that does not name the file."""


@functools.cache
def suffixes() -> frozenset[str]:
    """Returns the suffixes of the kinds of image files that are read, in lower case."""
    known = Image.registered_extensions().items()
    return frozenset(suffix for suffix, name in known if name in FORMATS)


def find(paths: Iterable[str]) -> list[Path]:
    """Returns the given files, and the images in the given folders, by suffix and sorted.

    Raises:
      UserError: a folder cannot be read or contains no images.
    """
    found = []
    for path in map(Path, paths):
        try:
            names = sorted(path.iterdir()) if path.is_dir() else None
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from error
        if names is None:
            found.append(path)
            continue
        inside = [p for p in names if p.suffix.lower() in suffixes() and p.name[0] != "."]
        if not inside:
            raise UserError(f"{path} contains no images ({' '.join(sorted(suffixes()))})")
        found += inside
    return found


def read(source: Path | bytes, *, known: bool = False) -> np.ndarray:
    """Returns an image, float32 ``[H, W]`` or ``[H, W, 3]`` in 0..1, upright, at most LARGEST.

    Of several frames it is the first. Transparent pixels become black if the image is bright, and
    white if it is dark.

    Args:
      source: a file, or its contents.
      known: it was read before, without warnings; only then may threads read at the same time.

    Raises:
      UnreadableImage: the file is missing or damaged, has too few pixels, has so many that Pillow
        warns, more than LARGEST_FILE bytes, or its pixels have no known range.
    """
    return _opened(source, lambda file: _pixels(ImageOps.exif_transpose(file)), known)


def size_of(source: Path | bytes) -> tuple[int, int]:
    """Returns height and width of an image, upright, from the beginning of its file.

    Raises:
      UnreadableImage: see :func:`read`.
    """

    def upright(file):
        turned = file.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return file.size if turned else file.size[::-1]

    return _opened(source, upright)


def _opened(source, function, known=False):
    """Calls a function of an opened image, and names what is wrong with the file."""
    strict = contextlib.nullcontext() if known else _strict()
    try:
        if isinstance(source, bytes):
            size, source = len(source), io.BytesIO(source)
        else:
            found = source.stat()
            size = found.st_size
            if not stat.S_ISREG(found.st_mode):
                raise UnreadableImage("not a file")
        if not size:
            raise UnreadableImage("an empty file")
        if size > LARGEST_FILE:
            raise UnreadableImage(f"larger than {LARGEST_FILE // 2**20} MiB")
        with strict:
            with Image.open(source, formats=FORMATS) as file:
                if min(file.size) < SMALLEST:
                    raise UnreadableImage(f"{file.width}x{file.height} pixels are too few")
                return function(file)
    except UnreadableImage:
        raise
    except Image.UnidentifiedImageError as error:
        raise UnreadableImage(f"not an image of a known kind ({', '.join(FORMATS)})") from error
    except OSError as error:
        raise UnreadableImage(error.strerror or f"damaged: {error}") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UnreadableImage(f"too many pixels, more than {Image.MAX_IMAGE_PIXELS:,}") from error
    except Exception as error:  # Pillow's decoders raise many types
        raise UnreadableImage(f"damaged: {error or type(error).__name__}") from error


@contextlib.contextmanager
def _strict():
    with warnings.catch_warnings(action="ignore"):  # of what is beside the pixels
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


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
        return _composite(values[..., :3], values[..., 3]) if transparent else values
    if not (values.min() >= 0 and values.max() <= 1):  # false if there are NaNs
        raise UnreadableImage("pixels that are neither 8 nor 16 bits nor floats in 0..1")
    image = Image.fromarray(values)
    image.thumbnail((LARGEST, LARGEST))
    return np.asarray(image).clip(0, 1)  # cubic interpolation overshoots at edges


def _composite(color, alpha):
    if not alpha.any():
        raise UnreadableImage("wholly transparent")
    bright = np.average(color @ np.float32(GREY_WEIGHTS), weights=alpha) > 0.5
    return color * alpha[..., None] + (1 - alpha[..., None]) * np.float32(not bright)


def with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Converts ``[H, W]`` or ``[H, W, 3]`` to ``[H, W, C]``, grey or colour; C is 1 or 3."""
    if image.ndim == 2:
        return np.repeat(image[..., None], channels, axis=2)
    return image if channels == 3 else (image @ np.float32(GREY_WEIGHTS))[..., None]


def border_brightness(image: np.ndarray) -> float:
    """Returns the median of the outermost pixels of ``[H, W, C]``, in the image's units."""
    return float(np.median(_outermost(image).mean(axis=1)))


def _outermost(image):
    return np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])


def is_negative(image: np.ndarray, borders: tuple[float, float]) -> bool:
    """Returns whether an image has the negated background of the training images.

    Args:
      image: ``[H, W, C]`` in 0..1.
      borders: of the training images, see :func:`experiments.data.datasets.dataset_facts`.
        If they have no common brightness, like those of photographs, the result is False.
    """
    low, high = borders
    usual, own = (low + high) / 2, border_brightness(image)
    return high - low <= UNIFORM_BORDER and abs(1 - own - usual) < abs(own - usual)


def pad(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Fits an image ``[H, W, C]`` into this height and width, centred, aspect ratio kept.

    It is surrounded by the median colour of its own border.
    """
    scale = min(np.divide(shape, image.shape[:2]))
    small = resize(image, scale)
    out = np.empty((*shape, image.shape[2]), np.float32)
    out[:] = np.median(_outermost(image), axis=0)
    return _paste(out, small, (np.subtract(shape, small.shape[:2])) // 2)


def centre_digit(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Normalizes a digit, brighter than its border, like MNIST's (LeCun, Cortes, Burges).

    The digit is cut out and scaled to a box of 20/28 of the shape, aspect ratio kept. Its centre
    of mass is moved to pixel (H/2, W/2), counted from 0, as far as the box stays inside. The
    border becomes 0 and the strongest stroke 1.
    """
    ink = np.clip(image - np.median(_outermost(image), axis=0), 0, None)
    out = np.zeros((*shape, image.shape[2]), np.float32)
    if not ink.max():
        return out
    ink /= ink.max()
    rows, columns = (np.flatnonzero((ink > INK_THRESHOLD).any(axis=(k, 2))) for k in (1, 0))
    cut = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    small = resize(cut, DIGIT_BOX * min(shape) / max(cut.shape[:2]))
    small /= small.max()
    mass = small.sum(axis=2)
    middle = [np.average(range(n), weights=mass.sum(axis=1 - k)) for k, n in enumerate(mass.shape)]
    place = np.rint(np.divide(shape, 2) - middle).astype(int)
    return _paste(out, small, np.clip(place, 0, np.subtract(shape, mass.shape)))


def resize(image: np.ndarray, scale: float) -> np.ndarray:
    """Scales an image ``[H, W, C]``, averaging over the area of a pixel when it shrinks."""
    height, width = (max(1, round(n * scale)) for n in image.shape[:2])
    return stretch(image, (height, width))


def stretch(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Scales an image ``[H, W, C]`` to this height and width, see :func:`resize`."""
    height, width = shape
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
