"""Four simulated CPU devices, and JAX with nothing implicit about types and shapes."""

import functools
import os

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import optax
import pytest

# Also through the configuration: a plugin may have imported JAX before this file.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def _promoting(function):
    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        with jax.numpy_dtype_promotion("standard"):
            return function(*args, **kwargs)

    return wrapped


# Optax's Adam computes decay**count, a float to an int32 power, which strict promotion forbids.
optax.tree.bias_correction = _promoting(optax.tree.bias_correction)


@pytest.fixture(scope="session", autouse=True)
def compiled_programs(tmp_path_factory):
    """Tests that need the same program compile it once."""
    folder = tmp_path_factory.mktemp("compiled")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture
def x64():
    """float64 for the duration of a test."""
    with jax.enable_x64():
        yield
