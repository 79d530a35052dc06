"""Digits on the black canvas of affNIST (Tieleman 2013): translated, transformed, or official.

The canvas extends the image by 6 pixels on every side, to 40x40 for MNIST. Everything random is a
function of a fixed seed and of the index of the image, so that it is the same for all runs.
"""

import functools
import os
import stat
import struct
import zlib
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import scipy.io

from experiments import UserError
from experiments.data.affine import Affine, ink_bounds, warp
from experiments.data.augment import random_shift
from experiments.data.errors import first_line

BORDER = 6
SEED = 2013
# Of the uniform distributions of affNIST: degrees, pixels to the right per pixel up, factors.
TRANSFORMATION_RANGES = {
    "rotation": (-20.0, 20.0),
    "shear": (-0.2, 0.2),
    "scale_x": (0.8, 1.2),
    "scale_y": (0.8, 1.2),
}
# Of the digits that networks are trained on. shift: by up to 6 pixels across and down, as in the
# paper. canvas: to any place where all ink is on the canvas, as affNIST's.
PLACEMENTS = ("shift", "canvas")
MOST_BYTES = 2**32  # of an unpacked file; the official ones have half a gigabyte
BATCH_SIZE = 250  # images transformed at a time
SUBFOLDERS = ("", "test_batches", "transformed/test_batches")  # that may contain *.mat


def pad_to_canvas(images: np.ndarray) -> np.ndarray:
    """Pads images uint8 ``[N, H, W, C]`` to black canvases ``[N, H + 12, W + 12, C]``."""
    border = (BORDER, BORDER)
    return np.pad(images, ((0, 0), border, border, (0, 0)))


def translate_images(canvases: np.ndarray, placement: str = "shift") -> np.ndarray:
    """Translates each canvas uint8 by whole pixels, see :data:`PLACEMENTS`."""
    return _map_images(_TRANSLATIONS[placement], canvases)


def random_place(key: chex.PRNGKey, image: chex.Array) -> jax.Array:
    """Translates an image ``[H, W, C]`` by whole pixels, uniform among those that keep all ink."""
    low, high = (jnp.array(x) for x in zip(*(_play(image, axis) for axis in (0, 1))))
    # What leaves the image on one side has no ink, and comes back on the other.
    return jnp.roll(image, jax.random.randint(key, (2,), low, high + 1), (0, 1))


def _play(image, axis):
    """The least and the greatest translation along an axis; none without ink."""
    ink = jnp.any(image > 0, axis=(1 - axis, 2))
    before, after = jnp.argmax(ink), jnp.argmax(ink[::-1])
    return -before, after


def distances_from_centre(images: np.ndarray) -> np.ndarray:
    """Returns how far the middle of the ink is from that of the image, in pixels ``[N]``.

    Args:
      images: ``[N, H, W, C]``. The middle of the ink is that of its bounding box, and distances
        are the larger of that across and that down; zero without ink.
    """
    ink = np.asarray(images).any(axis=3)
    along = []
    for axis in (1, 2):
        line = ink.any(axis=3 - axis)
        along.append(line.argmax(axis=1) - line[:, ::-1].argmax(axis=1))  # twice the distance
    return np.abs(along).max(axis=0) / 2


def transform_images(canvases: np.ndarray) -> np.ndarray:
    """Applies a random affine transformation to each canvas uint8: synthetic affNIST."""
    return _map_images(_transform, canvases)


def random_transformation(key: chex.PRNGKey, image: chex.Array) -> Affine:
    """Draws a transformation within :data:`TRANSFORMATION_RANGES` that keeps all ink on the canvas.

    The shift is uniform among those that do; an image too large for the canvas is centred.

    Args:
      key: of this image.
      image: ``[H, W, C]``, above zero where there is ink.
    """
    *keys, last = jax.random.split(key, len(TRANSFORMATION_RANGES) + 1)
    within = zip(TRANSFORMATION_RANGES.items(), keys, strict=True)
    t = Affine(**{n: jax.random.uniform(k, (), minval=v[0], maxval=v[1]) for (n, v), k in within})
    low, high = ink_bounds(image, t)
    height, width, _ = image.shape
    # The nearest positions outside the canvas, from the centre.
    outside = jnp.array([width + 1, height + 1], jnp.float32) / 2
    least, most = -outside - low, outside - high
    fraction = jax.random.uniform(last, (2,))
    fits = (least <= most) & jnp.isfinite(least)
    shift = jnp.where(fits, least + fraction * (most - least), (least + most) / 2)
    shift = jnp.where(jnp.isfinite(shift), shift, 0)
    return t._replace(shift_x=shift[0], shift_y=shift[1])


_TRANSLATIONS = {
    "shift": lambda key, image: random_shift(key, image, BORDER),
    "canvas": random_place,
}


def _transform(key, image):
    pixels = warp(image.astype(jnp.float32), random_transformation(key, image))
    return jnp.round(pixels).astype(jnp.uint8)


def _map_images(function, images):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(SEED), jnp.arange(len(images)))
    return np.asarray(_map_batches(function, keys, jnp.asarray(images)))


@functools.partial(jax.jit, static_argnums=0)
def _map_batches(function, keys, images):
    return jax.lax.map(lambda pair: function(*pair), (keys, images), batch_size=BATCH_SIZE)


def read_official_files(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns images uint8 ``[N, 40, 40, 1]`` and labels int32 ``[N]`` of the official files.

    Args:
      path: a .mat file, a folder with test.mat, or a folder with .mat files in it or in its
        test_batches.

    Raises:
      UserError: there are no such files, or one cannot be read or contains something else.
    """
    parts = [_read(file) for file in _mat_files(Path(path).expanduser())]
    images, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    return images, labels


def _mat_files(path):
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"--affnist_dir={path}: no such file or folder")
    if (path / "test.mat").is_file():
        return [path / "test.mat"]
    for folder in SUBFOLDERS:
        if found := sorted((path / folder).glob("*.mat")):
            return found
    raise UserError(
        f"--affnist_dir={path} has neither test.mat nor *.mat files, also not in test_batches; "
        "expected the unpacked transformed test batches of affNIST"
    )


def _read(path):
    try:
        # This format has no pickles; MATLAB's objects are refused below.
        _check_size(path)
        stored = scipy.io.loadmat(path, variable_names=["affNISTdata"])
        record = stored["affNISTdata"]
        if not {"image", "label_int"} <= set(record.dtype.names or ()):
            raise ValueError("affNISTdata has no image and label_int")
        images, labels = (record[name].item() for name in ("image", "label_int"))
        return _check(images, labels)
    except KeyError as error:
        reason = f"it contains no {error.args[0]}"
    except NotImplementedError:
        reason = "MATLAB's version 7.3 (HDF5) is not read, save it as version 5 or 7"
    except Exception as error:  # SciPy raises many types for a damaged file
        reason = first_line(error)
    raise UserError(f"{path} is not a file of affNIST: {reason}")


def _check_size(path):
    """Refuses a file whose compressed elements (kind 15) would unpack to more than fits."""
    need = 0
    with open(path, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("not a regular file")
        start = file.read(128)  # of the header, which ends in version and byte order
        order = "<" if start[126:128] == b"IM" else ">"
        while len(tag := file.read(8)) == 8:
            kind, count = struct.unpack(f"{order}II", tag)
            packed, unpacker = count, zlib.decompressobj()
            while packed > 0 and (block := file.read(min(packed, 2**16))):
                packed -= len(block)
                while kind == 15 and block and need <= MOST_BYTES:
                    need += len(unpacker.decompress(block, 2**20))
                    block = unpacker.unconsumed_tail
    if need > MOST_BYTES:
        raise ValueError(f"it unpacks to more than {MOST_BYTES:,} bytes")


def _check(images, labels):
    numeric = all(isinstance(a, np.ndarray) and a.dtype.kind in "uif" for a in (images, labels))
    if not numeric:
        raise ValueError("image and label_int are not arrays of numbers")
    side = 28 + 2 * BORDER
    if images.ndim != 2 or len(images) != side**2 or not 0 < labels.size == images.shape[1]:
        raise ValueError(
            f"image is {_shape(images)} and label_int {_shape(labels)}, not {side**2}xN and 1xN"
        )
    labels = labels.reshape(-1)
    for name, values, most in (("image", images, 255), ("label_int", labels, 9)):
        if not np.all((values >= 0) & (values <= most) & (values == np.floor(values))):
            raise ValueError(f"{name} has values other than whole numbers from 0 to {most}")
    # A column is an image, row by row.
    return images.T.astype(np.uint8).reshape(-1, side, side, 1), labels.astype(np.int32)


def _shape(array):
    return "x".join(map(str, array.shape))


# Half a gigabyte, which is needed both before and after training.
official_test_set = functools.cache(read_official_files)
