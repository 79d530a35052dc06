"""Images like MNIST's, and files like affNIST's."""

import numpy as np
import scipy.io

RNG = np.random.default_rng(0)


def digits(n=40, side=28):
    """Returns strokes of noise in the middle 20x20 pixels, like MNIST's digits."""
    images = np.zeros((n, side, side, 1), np.uint8)
    images[:, 4:-4, 4:-4] = RNG.integers(0, 256, size=(n, side - 8, side - 8, 1))
    return images * (RNG.uniform(size=images.shape) < 0.3)


def write(path, images=None, labels=None, **fields):
    images = RNG.integers(0, 256, size=(5, 40, 40)).astype(np.uint8) if images is None else images
    labels = np.array([[3, 1, 4, 1, 5]], np.uint8) if labels is None else labels
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = images.reshape(len(images), -1).T  # as in the files: a column an image
    record = {"affine": np.zeros((6, 5)), "image": columns, "label_int": labels} | fields
    scipy.io.savemat(path, {"affNISTdata": record})
    return images, labels.reshape(-1)
