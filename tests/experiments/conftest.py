"""Fixtures of the tests of experiments."""

import numpy as np
import pytest


@pytest.fixture
def stored(tmp_path):
    def write(values, name="a.npz"):
        np.savez(tmp_path / name, **values)
        return str(tmp_path / name)

    return write
