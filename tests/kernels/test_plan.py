"""Plans of training steps on many devices: what is counted, and what the compilers say."""

import dataclasses
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import capsjax
from kernels import plan, targets
from kernels.collectives import Collective, collectives
from kernels.flops import count_flops
from kernels.hardware import HARDWARE

HLO = """
  %a = f32[10,8]{1,0} all-reduce(%x), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  %b = (f32[6]{0:T(256)S(1)}, /*index=1*/bf16[4,3]{1,0}) all-reduce-start(%x, %y), \
replica_groups=[2,8]<=[16], to_apply=%add
  %c = u8[16]{0} all-gather(%x), replica_groups=mesh['data'=4,'model'=8] {'model'}, dimensions={0}
  %d = pred[] all-reduce(%x), replica_groups=mesh['a'=2,'b'=3] {'a','b'}, to_apply=%and
  %e = s32[5]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
  %h = f32[7]{0} all-reduce(%x), replica_groups={}, to_apply=%add
  %i = (f32[4]{0}, f32[16]{0:T(128)}) all-gather-start(%x), replica_groups={{0,1,2,3}}
  %j = ((f32[3]{0}, u8[8]{0}), (f32[6]{0}, u8[16]{0})) all-gather-start(%x, %y), \
replica_groups={{0,1}}, dimensions={0}
  %k = (f32[5]{0}, f32[5]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), \
source_target_pairs={{0,1},{1,0}}
  %f = f32[3]{0} fusion(%a), kind=kLoop, calls=%all-reduce.1
  ROOT %g = (f32[2]{0}) tuple(%a)
"""


def test_every_target_has_its_rates():
    assert HARDWARE.keys() == set(targets.TARGETS)


def test_collectives_of_a_program():
    assert collectives(HLO, 16) == [
        Collective("all-reduce", 10 * 8 * 4, 4),
        Collective("all-reduce", 6 * 4 + 12 * 2, 8),
        Collective("all-gather", 16, 8),
        Collective("all-reduce", 1, 6),
        Collective("collective-permute", 20, 2),
        Collective("all-reduce", 28, 16),
        Collective("all-gather", 64, 4),
        Collective("all-gather", 24 + 16, 2),
        Collective("collective-permute", 20, 2),
    ]


@pytest.mark.parametrize("devices", [2, 5])
@pytest.mark.parametrize("kind", ["all-reduce", "all-gather", "reduce-scatter"])
def test_bytes_sent_are_those_of_a_ring(kind, devices):
    """Each device sends one part to its neighbour, devices - 1 times for each half of the work."""
    part = 12  # bytes
    turns = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1}[kind] * (devices - 1)
    result = part if kind == "reduce-scatter" else part * devices
    assert Collective(kind, result, devices).sent == pytest.approx(turns * part)


def flops(function, *arguments):
    return count_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def test_operations_of_products_and_convolutions():
    a, b = jnp.zeros((7, 3, 5)), jnp.zeros((7, 5, 11))
    assert flops(jnp.matmul, a, b) == 2 * 7 * 3 * 5 * 11
    # Forward, and the same again for the gradient by each operand.
    gradient = jax.grad(lambda a, b: (a @ b).sum(), (0, 1))
    assert flops(jax.jit(gradient), a, b) == 3 * 2 * 7 * 3 * 5 * 11
    images, kernel = jnp.zeros((2, 9, 8, 6)), jnp.zeros((3, 2, 6, 10))

    def conv(images, kernel, groups=1):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "VALID", None, None, layout, groups
        )

    assert flops(conv, images, kernel) == 2 * (2 * 7 * 7 * 10) * (3 * 2 * 6)
    assert flops(lambda *x: conv(*x, 2), images, kernel[:, :, :3]) == 2 * (2 * 49 * 10) * 18


@pytest.mark.parametrize(
    "stride, padding, groups", [(2, "VALID", 1), (3, "SAME", 1), (1, "SAME", 3)]
)
def test_gradients_of_convolutions_have_the_operations_of_the_convolution(stride, padding, groups):
    """Each product of a pixel and a weight is in the result and in both gradients, once each."""
    images, kernel = jnp.ones((2, 11, 8, 6)), jnp.ones((3, 4, 6 // groups, 9))

    def conv(images, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        options = {"dimension_numbers": layout, "feature_group_count": groups}
        return jax.lax.conv_general_dilated(images, kernel, (stride,) * 2, padding, **options)

    # With pixels and weights of one, the sum of the result is the number of its products.
    products = int(conv(images, kernel).sum())
    assert flops(conv, images, kernel) == 2 * products
    gradient = jax.grad(lambda *x: conv(*x).sum(), (0, 1))
    assert flops(jax.jit(gradient), images, kernel) == 3 * 2 * products


def test_operations_of_loops_branches_and_devices():
    x = jnp.zeros((4, 4))
    once = 2 * 4**3
    assert flops(lambda x: jax.lax.scan(lambda c, _: (c @ x, None), x, None, 9)[0], x) == 9 * once
    assert flops(lambda x: jax.lax.fori_loop(0, 9, lambda _, c: c @ x, x), x) == 9 * once
    branches = [lambda x: x, lambda x: x @ x, lambda x: x @ x @ x]
    assert flops(lambda x: jax.lax.switch(1, branches, x), x) == 2 * once
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("data")
    mapped = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=spec, out_specs=spec)
    assert flops(mapped, x) == once


def test_operations_of_several_devices():
    """Four rows are divided among two devices, or among four if they are two at a time."""
    devices = np.array(jax.devices()[:4]).reshape(2, 2)
    mesh = Mesh(devices, ("rows", "others"), axis_types=(AxisType.Auto,) * 2)
    x, rows = jnp.ones((4, 3)), PartitionSpec("rows")
    mapped = jax.shard_map(
        lambda x: x @ x.T, mesh=mesh, in_specs=rows, out_specs=rows, axis_names={"rows"}
    )
    assert flops(mapped, x) == 2 * (2 * 2 * 2 * 3)


def planned(target, topology, function, *specs, split):
    """Returns the plan of a function whose arguments are divided as ``split`` says."""
    if reason := targets.why_unavailable(target):
        pytest.skip(reason)
    devices = np.array(targets.devices(target, topology))
    mesh = Mesh(devices, ("data",), axis_types=(AxisType.Auto,))
    placed = [
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))
        for x, spec in zip(specs, split)
    ]
    mapped = jax.shard_map(function, in_specs=split, out_specs=PartitionSpec(), check_vma=False)
    axes = {"data": devices.size}
    jaxpr, lowered = targets.lower(jax.jit(mapped), *placed, target=target, axes=axes)
    about = {"target": target, "topology": topology, "dtype": "float32", "devices": devices.size}
    return plan.needs(lowered.compile(), count_flops(jaxpr) // devices.size, about)


@pytest.mark.parametrize("target, topology", [("tpu_v5e", "2x2"), ("h200", "1x4")])
def test_a_gradient_over_four_devices(target, topology):
    """The product of a divided batch with a matrix, whose gradient is summed over the devices."""
    batch = jax.ShapeDtypeStruct((4 * 256, 512), "float32")
    matrix = jax.ShapeDtypeStruct((512, 128), "float32")

    def gradient(x, w):
        return jax.lax.psum(jax.grad(lambda w: jnp.sum((x @ w) ** 2))(w), "data")

    split = PartitionSpec("data"), PartitionSpec()
    found = planned(target, topology, gradient, batch, matrix, split=split)
    assert found["flops"] == 2 * 2 * 256 * 512 * 128
    assert found["collectives"] == [Collective("all-reduce", 512 * 128 * 4, 4)._asdict()]
    own = 4 * (256 * 512 + 2 * 512 * 128)  # its part of the batch, the matrix and the gradient
    assert own <= found["memory"] < 3 * own and found["fits"]
    hardware = HARDWARE[target]
    assert found["arithmetic_seconds"] == pytest.approx(found["flops"] / hardware.flops)
    hops = math.fsum(map(int, topology.split("x")))
    sent = 1.5 * 512 * 128 * 4 / hardware.links
    assert found["communication_seconds"] == pytest.approx(sent + plan.HOP * hops)
    assert found["step_seconds"] > found["communication_seconds"]


def test_hosts_are_connected_by_slower_links():
    batch = jax.ShapeDtypeStruct((4096, 4096), "float32")
    split = (PartitionSpec("data"),)
    near, far = (
        planned("h200", hosts, lambda x: jax.lax.psum(x, "data"), batch, split=split)
        for hosts in ("1x4", "2x2")
    )
    assert near["sent"] == far["sent"]
    assert far["communication_seconds"] > near["communication_seconds"]


@pytest.mark.parametrize("target, topology", [("tpu_v5e", "3x5x7"), ("tpu_v5e", "many")])
def test_a_topology_that_does_not_exist(target, topology):
    if reason := targets.why_unavailable(target):
        pytest.skip(reason)
    with pytest.raises(ValueError, match=f"{target} has no topology {topology}: "):
        targets.devices(target, topology)


def test_a_step_with_divided_capsules():
    """Two parts of the capsules: half of W and of its moments on each, the same arithmetic."""
    if reason := targets.why_unavailable("tpu_v5e"):
        pytest.skip(reason)
    network = capsjax.preset("capsnet_tiny", decoder=None, num_classes=100)
    whole, divided = (
        plan.row(dataclasses.replace(network, routing_implementation=how), 16, "tpu_v5e", *where)
        for how, where in (("stream", ("2x2",)), ("auto", ("2x2", 2)))
    )
    # Each part computes the state that routing starts from, of one capsule.
    start = 2 * (16 // 4) * 100 * 16 * 8
    assert 0 < divided["flops"] - whole["flops"] <= start
    weights = 4 * network.input_capsules * 100 * 16 * 8
    # Beside parameters and moments there are gradients, which may take the place of others.
    assert 3 * weights / 2 <= whole["memory"] - divided["memory"] < 3 * weights
    assert {one["kind"] for one in whole["collectives"]} == {"all-reduce"}
    assert whole["capsule_shards"] == 1 and divided["capsule_shards"] == 2
    # Sums over capsules: one of the class capsules' [J, D, B] for each iteration, and gradients.
    assert len(divided["collectives"]) > len(whole["collectives"])
    with pytest.raises(ValueError, match="--capsule_shards=3: 2x2 has 4 devices"):
        plan.row(network, 16, "tpu_v5e", "2x2", 3)


def test_a_step_that_does_not_fit_is_a_row(monkeypatch, capsys):
    """The table goes on, and efficiency is that of the first devices that have room."""
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 104G exceeds 16G\nmore")

    def lower(*_, **__):
        def compile():
            raise error

        return jax.make_jaxpr(lambda: 0)().jaxpr, types.SimpleNamespace(compile=compile)

    devices = jax.devices()[:2]
    monkeypatch.setattr(targets, "devices", lambda *_: devices)
    monkeypatch.setattr(targets, "lower", lower)
    network = capsjax.preset("capsnet_tiny")
    found = plan.row(network, 16, "tpu_v5e", "1x2")
    assert not found["fits"] and found["error"] == "RESOURCE_EXHAUSTED: 104G exceeds 16G"
    error = jax.errors.JaxRuntimeError("INTERNAL: a fault")
    with pytest.raises(jax.errors.JaxRuntimeError, match="a fault"):
        plan.row(network, 16, "tpu_v5e", "1x2")
    good = {"topology": "2x2", "devices": 4, "batch_size": 8, "fits": True, "loops": False}
    good |= {"memory": 1e6, "accessed": 1.0, "collectives": [], "sent": 0.0, "step_seconds": 0.5}
    good |= {f"{name}_seconds": 0.1 for name in ("arithmetic", "memory", "communication")}
    rows = iter([found, good])
    monkeypatch.setattr(plan, "row", lambda *_: next(rows))
    plan.table(network, 8, "tpu_v5e", ["1x2", "2x2"])
    bad, fits = (line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:])
    assert bad == ["1x2", "2", "8", "too much", *"--------"]
    assert fits[-2:] == ["16", "1.00"] and len(fits) == len(plan.HEADINGS)
