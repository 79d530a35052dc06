"""Descriptions of compile-only targets, and that every one of them compiles."""

import re

import jax
import jax.numpy as jnp
import pytest

from kernels import aot, targets

X = jax.ShapeDtypeStruct((128, 128), "float32")


def test_every_gpu_is_described_in_full():
    for name, (device, major, fields) in targets.GPUS.items():
        assert list(fields) == targets._FIELDS and all(v > 0 for v in fields.values()), name
        assert fields["shared_memory_per_block_optin"] < fields["shared_memory_per_core"]
        assert 8 <= major <= 10 and name.upper() in device
        text = targets.gpu_config(name)
        assert text.count("{") == text.count("}")
        written = re.findall(r"(\w+):", text)
        assert {"core_count", "threads_per_warp", "platform_name"} <= set(written)


@pytest.mark.parametrize("function", [targets.platform, targets.why_unavailable])
def test_unknown_target(function):
    with pytest.raises(ValueError, match=r"target must be one of tpu_v4, .*, b200, not 'v100'"):
        function("v100")
    with pytest.raises(ValueError, match="'v100'"):
        targets.compile(jnp.sin, X, target="v100")


def test_a_missing_compiler_is_reported_in_one_line(monkeypatch):
    def absent(name):
        raise targets.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(targets.metadata, "version", absent)
    for target, package in (("tpu_v5e", "libtpu"), ("h200", "jax-cuda13-pjrt")):
        message = targets.why_unavailable(target)
        assert package in message and "requirements-aot.txt" in message and "\n" not in message


def compiled(function, *specs, target):
    reason = targets.why_unavailable(target)
    if reason:
        pytest.skip(reason)
    return targets.compile(function, *specs, target=target)


@pytest.mark.parametrize("target", targets.TARGETS)
def test_a_matrix_product_compiles(target):
    product = compiled(lambda x: x["a"] @ x["b"], {"a": X, "b": X}, target=target)
    assert product.memory_analysis().argument_size_in_bytes == 2 * X.size * 4
    assert jax.default_backend() == "cpu"


@pytest.mark.parametrize("target", ["tpu_v5e", "h200"])
def test_arrays_are_distinguished_from_values_inside_a_fusion(target):
    def function(x):
        outer = jnp.sin(x)[:, :, None] * jnp.cos(x)[None]
        return jnp.max(outer, axis=1)

    row = aot.describe(compiled(function, X, target=target), votes=128**3)
    assert row["votes"] == "fused" and row["largest_elements"] >= 128**3
    assert row["arguments"] == X.size * 4 and not row["loops"]
    row = aot.describe(compiled(jnp.sin, X, target=target), votes=128**3)
    assert row["votes"] == "no"
