"""Fixtures of the tests of training."""

import dataclasses

import pytest
from helpers import QUICK, train


@pytest.fixture(scope="session")
def dynamic(tmp_path_factory):
    """Trains a dynamic run until its couplings are no longer even, for runs with frozen ones."""
    workdir = tmp_path_factory.mktemp("dynamic")
    config = dataclasses.replace(
        QUICK,
        routing="dynamic",
        workdir=str(workdir),
        learning_rate=0.03,
        steps=6,
        validation_fraction=0.3,
    )
    return config, workdir, train(config)
