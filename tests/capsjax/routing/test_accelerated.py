"""Which kernels the library takes by itself."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import capsjax
from capsjax.routing import PassKernels, accelerated, make_routing, route
from kernels import api

TPU = types.SimpleNamespace(platform="tpu")
OLD_GPU = types.SimpleNamespace(platform="gpu", compute_capability="7.0")
CPU = types.SimpleNamespace(platform="cpu")


def devices(monkeypatch, *present):
    monkeypatch.setattr(accelerated, "_devices", lambda: present)


def test_auto_takes_kernels_where_they_run(monkeypatch):
    devices(monkeypatch, TPU)
    assert isinstance(accelerated.select_kernels("auto"), PassKernels)
    assert isinstance(accelerated.select_kernels("pallas"), PassKernels)


@pytest.mark.parametrize("present", [[CPU], [OLD_GPU], [TPU, TPU], []])
def test_auto_takes_none_elsewhere_and_pallas_says_why(present, monkeypatch):
    devices(monkeypatch, *present)
    assert accelerated.select_kernels("auto") == "auto"
    with pytest.raises(ValueError, match="pallas|kernels") as error:
        accelerated.select_kernels("pallas")
    assert "\n" not in str(error.value)


def test_auto_takes_kernels_on_each_device_of_a_shard_map(monkeypatch):
    devices(monkeypatch, TPU, TPU)
    chosen = []

    def body(x):
        chosen.append(accelerated.select_kernels("auto"))
        return x

    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")
    sharded = jax.shard_map(body, mesh=mesh, in_specs=spec, out_specs=spec)
    jax.eval_shape(sharded, jnp.ones(4))
    assert chosen and all(isinstance(one, PassKernels) for one in chosen)


def test_a_batch_is_divided_except_inside_shard_map():
    assert len(jax.devices()) > 1 and accelerated.divided()
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        assert accelerated.divided()
    with jax.default_device(jax.devices()[0]):
        assert accelerated.divided()
    inside, spec = [], jax.sharding.PartitionSpec("data")

    def body(x):
        inside.append(accelerated.divided())
        return x

    jax.eval_shape(jax.shard_map(body, mesh=mesh, in_specs=spec, out_specs=spec), jnp.ones(4))
    assert inside == [False]


def test_the_library_works_without_the_package_of_kernels(monkeypatch):
    monkeypatch.setattr(accelerated, "find_companion", lambda name: None)
    devices(monkeypatch, TPU)
    assert accelerated.select_kernels("auto") == "auto"
    with pytest.raises(ValueError, match="not installed"):
        accelerated.select_kernels("pallas")


def test_the_package_of_another_project_is_not_taken_for_the_kernels(monkeypatch, tmp_path):
    assert capsjax.companions.find_companion("kernels") == "kernels"
    other = tmp_path / "kernels"
    other.mkdir()
    (other / "__init__.py").touch()
    found = types.SimpleNamespace(origin=str(other / "__init__.py"))
    monkeypatch.setattr(capsjax.companions.importlib.util, "find_spec", lambda name: found)
    assert capsjax.companions.find_companion.__wrapped__("kernels") is None


def test_route_runs_the_kernels_that_it_finds(monkeypatch):
    """Here in the interpreter; the kernels themselves are tested elsewhere."""
    rng = np.random.default_rng(0)
    u, W = (rng.normal(size=s).astype(np.float32) for s in ((2, 5, 4), (5, 3, 6, 4)))
    routing = make_routing("dynamic")

    def loss(u, implementation):
        return jnp.sum(route(routing, {}, u, W, implementation=implementation).pose ** 2)

    exact = jax.value_and_grad(loss)(u, "naive")
    calls = []

    def select(name, devices, divided):
        calls.append((name, divided))
        return api.pass_kernels("tpu", interpret=True)

    devices(monkeypatch, CPU, CPU)
    monkeypatch.setattr(api, "select", select)
    for name in ("auto", "pallas_interpret"):
        found = jax.value_and_grad(loss)(u, name)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *(found, exact)
        )
    assert calls == [("auto", True), ("pallas_interpret", True)]


def test_auto_needs_no_kernels_for_votes_of_another_kind(monkeypatch):
    devices(monkeypatch, TPU)
    rng = np.random.default_rng(0)
    u = rng.normal(size=(2, 5, 4)).astype(np.float32)
    W = rng.normal(size=(5, 3, 6, 4)).astype(np.float32)
    naive, auto = (
        route(make_routing("sparsemax"), {}, u, W, implementation=name)
        for name in ("naive", "auto")
    )
    np.testing.assert_array_equal(auto.pose, naive.pose)
