"""The examples in the docstrings of capsjax and kernels are run, all of them."""

import doctest
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import pytest

import capsjax
import kernels

MODULES = sorted(
    [
        "capsjax",
        *(m.name for m in pkgutil.walk_packages(capsjax.__path__, "capsjax.")),
        *(m.name for m in pkgutil.walk_packages(kernels.__path__, "kernels.")),
    ]
)


def test_every_module_is_found():
    assert {"capsjax.squash", "capsjax.routing", "capsjax.routing.dynamic"} < set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    with open(module.__file__) as file:
        written = sum(line.strip().startswith(">>>") for line in file)
    names = vars(module) | {"jax": jax, "jnp": jnp}
    results = doctest.testmod(module, globs=names)
    assert results.attempted == written
    assert results.failed == 0
