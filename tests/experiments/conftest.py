"""Fixtures of the tests of experiments."""

import numpy as np
import pytest

from experiments.data.small_digits import enlarged_digits


@pytest.fixture
def stored(tmp_path):
    def write(values, name="a.npz"):
        np.savez(tmp_path / name, **values)
        return str(tmp_path / name)

    return write


@pytest.fixture(scope="session")
def ten_digits():
    """Returns test images of the bundled digits, one of each class, floats [10, 28, 28, 1]."""
    found = enlarged_digits()
    first = [np.flatnonzero(found["test_labels"] == k)[0] for k in range(10)]
    return np.float32(found["test_images"][first]) / 255
