"""Fixtures of all tests: four simulated CPU devices, strict types and shapes in JAX."""

import dataclasses
import functools
import importlib.util
import os
import signal

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import optax
import pytest

# Tests send signals, which nohup and shells make their background jobs ignore.
for _name, _handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    if hasattr(signal, _name) and signal.getsignal(getattr(signal, _name)) == signal.SIG_IGN:
        signal.signal(getattr(signal, _name), _handler)

pytest.register_assert_rewrite("figure_helpers", "tfds_builders")

# Most of the time of a test is compiling what then runs once; XLA reads this with its first
# program. `XLA_FLAGS= python -m pytest` tests what it makes by default, in five times the time.
QUICK = (
    "--xla_cpu_use_fusion_emitters=false"
    if jax.__version_info__ < (0, 11)
    else "--xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE"
)
QUICK += " --xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if not importlib.util.find_spec("libtpu"):  # which ends the process at a flag that it lacks
    os.environ.setdefault("XLA_FLAGS", QUICK)

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
    """Compiles a program that several tests need only once."""
    if importlib.util.find_spec("libtpu"):
        return  # Compilers for devices that are absent can't read a program from the cache.
    folder = tmp_path_factory.mktemp("compiled")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(scope="module", autouse=True)
def released_programs():
    """Frees the programs of a module: the system limits the number of memory mappings."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """Returns the folder of a run of two steps on the digits, which tests must not change."""
    # Not at the top: the tests of compilers run where the commands' packages are not installed.
    from helpers import TINY, train

    from experiments.tasks import figures

    folder = tmp_path_factory.mktemp("tiny_run") / "run"
    config = dataclasses.replace(TINY, batch_size=16, workdir=str(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "of_finished_run", lambda *_: [])  # which others test
        train(config)
    return folder


@pytest.fixture
def x64():
    """Enables float64 for the duration of a test."""
    with jax.enable_x64():
        yield
