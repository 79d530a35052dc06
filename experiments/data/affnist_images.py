"""Digits on the black canvas of affNIST (Tieleman 2013): translated, transformed, or its files.

The canvas has 6 pixels more than the image on every side, 40x40 for MNIST. Everything random is
a function of one seed and of the number of the image, the same for all runs.
"""

import functools
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import scipy.io

from experiments.config import UserError
from experiments.data.affine import Affine, ink_bounds, warp
from experiments.data.augment import shift

BORDER = 6
SEED = 2013
# Uniform and independent; affNIST's. Degrees, pixels to the right per pixel up, factors.
RANGES = {
    "rotation": (-20.0, 20.0),
    "shear": (-0.2, 0.2),
    "scale_x": (0.8, 1.2),
    "scale_y": (0.8, 1.2),
}
CHUNK = 250  # images at a time
WHERE = ("", "test_batches", "transformed/test_batches")  # of *.mat in the folder that is given


def on_canvas(images: np.ndarray) -> np.ndarray:
    """Images uint8 ``[N, H, W, C]`` in the middle of black canvases ``[N, H + 12, W + 12, C]``."""
    border = (BORDER, BORDER)
    return np.pad(images, ((0, 0), border, border, (0, 0)))


def translated(images: np.ndarray) -> np.ndarray:
    """Canvases uint8, each moved by up to 6 whole pixels across and down (the paper's data)."""
    return _each(_translate, images)


def transformed(images: np.ndarray) -> np.ndarray:
    """Canvases uint8 after one random affine transformation each: synthetic affNIST."""
    return _each(_transform, images)


def draw(key: chex.PRNGKey, image: chex.Array) -> Affine:
    """A transformation within :data:`RANGES`, shifted so that all ink stays on the canvas.

    The shift is uniform among those; an image too large for the canvas comes to its middle.

    Args:
      key: of this image. image: ``[H, W, C]``, above zero where there is ink.
    """
    *keys, last = jax.random.split(key, len(RANGES) + 1)
    within = zip(RANGES.items(), keys, strict=True)
    t = Affine(**{n: jax.random.uniform(k, (), minval=v[0], maxval=v[1]) for (n, v), k in within})
    low, high = ink_bounds(image, t)
    height, width, _ = image.shape
    # The first place outside, from the centre.
    outside = jnp.array([width + 1, height + 1], jnp.float32) / 2
    least, most = -outside - low, outside - high
    share = jax.random.uniform(last, (2,))
    fits = (least <= most) & jnp.isfinite(least)
    shift = jnp.where(fits, least + share * (most - least), (least + most) / 2)
    shift = jnp.where(jnp.isfinite(shift), shift, 0)
    return t._replace(shift_x=shift[0], shift_y=shift[1])


def _translate(key, image):
    return shift(key, image, BORDER)


def _transform(key, image):
    pixels = warp(image.astype(jnp.float32), draw(key, image))
    return jnp.round(pixels).astype(jnp.uint8)


def _each(function, images):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(SEED), jnp.arange(len(images)))
    return np.asarray(_mapped(function, keys, jnp.asarray(images)))


@functools.partial(jax.jit, static_argnums=0)
def _mapped(function, keys, images):
    return jax.lax.map(lambda pair: function(*pair), (keys, images), batch_size=CHUNK)


def read(where: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 ``[N, 40, 40, 1]`` and labels int32 ``[N]`` of the official files.

    Args:
      where: a .mat file, or a folder with test.mat, or with .mat files in it or its test_batches.

    Raises:
      UserError: there are none, or one can't be read or is something else.
    """
    parts = [_read(path) for path in _files(Path(where).expanduser())]
    images, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    return images, labels


def _files(path):
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"--affnist_dir={path}: no such file or folder")
    if (path / "test.mat").is_file():
        return [path / "test.mat"]
    for folder in WHERE:
        if found := sorted((path / folder).glob("*.mat")):
            return found
    raise UserError(
        f"--affnist_dir={path} has neither test.mat nor *.mat, also not in test_batches; "
        "affNIST's transformed test batches are wanted, unpacked"
    )


def _read(path):
    try:
        # Pickles do not exist in this format; what MATLAB calls objects is refused below.
        held = scipy.io.loadmat(path, variable_names=["affNISTdata"])
        record = held["affNISTdata"]
        if not {"image", "label_int"} <= set(record.dtype.names or ()):
            raise ValueError("affNISTdata has no image and label_int")
        images, labels = (record[name].item() for name in ("image", "label_int"))
        return _check(images, labels)
    except KeyError as error:
        reason = f"it holds no {error.args[0]}"
    except NotImplementedError:
        reason = "MATLAB's version 7.3 (HDF5) is not read, save it as version 5 or 7"
    except Exception as error:  # SciPy raises many types for a damaged file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise UserError(f"{path} is not a file of affNIST: {reason}")


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
            raise ValueError(f"{name} has other values than whole numbers from 0 to {most}")
    # A column is an image, row by row.
    return images.T.astype(np.uint8).reshape(-1, side, side, 1), labels.astype(np.int32)


def _shape(array):
    return "x".join(map(str, array.shape))


official = functools.cache(read)  # half a gigabyte, and read before and after training
