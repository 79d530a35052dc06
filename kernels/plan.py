"""What a training step needs on many devices, from their compilers alone.

``python -m kernels.aot --step --target=tpu_v5e --topology=4x4,16x16`` compiles the training step
of a network for devices that need not be present. The batch is divided among all of them, and with
``--capsule_shards`` the weights of the class capsules too. A row of the table has the memory of a
device, the collective operations and their bytes, and the time that a step takes at least: the
longer one of its arithmetic and its memory traffic at the rates of
:data:`kernels.hardware.HARDWARE`, and after that the communication. Nothing is run, hence nothing
is measured.
"""

import dataclasses
from collections.abc import Iterable

import jax
import numpy as np
from absl import flags
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import capsjax
from capsjax.models import Config
from capsjax.models.sharding import weight_specs
from capsjax.routing import PassKernels
from capsjax.routing.stream import STREAM
from kernels import api, targets
from kernels.collectives import collectives
from kernels.flops import count_flops
from kernels.hardware import HARDWARE

AXIS, CAPSULES = "data", "capsules"  # of the mesh of devices
EACH = 128  # images on a device
HOP = 1e-6  # seconds, an assumption: from a device to its neighbour, however few the bytes


def training_step(
    network: Config, batch_size: int, axis_name: str | tuple[str, ...] | None = None
) -> tuple:
    """Returns the training step of a network and the shapes of its arguments.

    Args:
      network: see :func:`capsjax.create_model`.
      batch_size: number of images.
      axis_name: see :func:`capsjax.make_train_step`.
    """
    model, optimizer = capsjax.create_model(network), capsjax.adam()
    step = capsjax.make_train_step(capsjax.capsnet_loss(model), optimizer, axis_name=axis_name)
    key = jax.eval_shape(jax.random.key, 0)
    state = jax.eval_shape(lambda key: capsjax.init_state(model, optimizer, key), key)
    images = jax.ShapeDtypeStruct((batch_size, *network.image_shape), "float32")
    return step, state, images, jax.ShapeDtypeStruct((batch_size,), "int32"), key


def row(network: Config, batch_size: int, target: str, topology: str, shards: int = 1) -> dict:
    """Compiles the training step of a network and returns what it needs.

    If the compiler says that the memory of a device is too small, the row has its reason alone.

    Args:
      network: its batch is divided among the devices.
      batch_size: of all devices together.
      target: one of :data:`kernels.targets.TARGETS`.
      topology: see :func:`kernels.targets.devices`.
      shards: number of parts into which the input capsules of the class capsules, their weights
        and the moments of those are divided. All other parameters are on all devices.

    Raises:
      ValueError: there is no such topology, or something can't be divided among its devices.
    """
    devices = np.array(targets.devices(target, topology))
    if devices.size % shards:
        raise ValueError(f"--capsule_shards={shards}: {topology} has {devices.size} devices")
    if batch_size % devices.size:
        raise ValueError(f"--batch_size={batch_size} can't be divided among {devices.size} devices")
    axes = {AXIS: devices.size // shards, CAPSULES: shards}
    mesh = Mesh(devices.reshape(*axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * 2)
    if shards > 1:
        # Its mesh is that of :func:`kernels.targets.lower`.
        parts = capsjax.routing.CapsuleShards(targets.abstract_mesh(target, axes), CAPSULES)
        network = dataclasses.replace(network, routing_implementation=parts)
    step, state, *others = training_step(network, batch_size, None if shards > 1 else tuple(axes))
    everywhere, divided = PartitionSpec(), PartitionSpec(tuple(axes))
    specs = weight_specs(network, state), divided, divided, everywhere
    if shards == 1:
        step = jax.shard_map(step, in_specs=specs, out_specs=everywhere, check_vma=False)

    def place(x, spec):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    state = jax.tree.map(place, state, specs[0])
    results = jax.tree.map(lambda x: x.sharding, state), NamedSharding(mesh, everywhere)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=results)
    call = state, *map(place, others, specs[1:])
    jaxpr, lowered = targets.lower(jitted, *call, target=target, axes=axes)
    about = {"target": target, "topology": topology, "devices": devices.size}
    about |= {"batch_size": batch_size, "capsule_shards": shards, "dtype": network.dtype}
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in (reason := str(error).splitlines()[0]):
            raise
        return about | {"fits": False, "error": reason}
    return about | needs(compiled, count_flops(jaxpr) // devices.size, about)


def needs(compiled: jax.stages.Compiled, flops: int, about: dict) -> dict:
    """Returns memory, collectives and the shortest time of a compiled step.

    Args:
      compiled: of all devices.
      flops: of one device.
      about: target, topology, devices and dtype.
    """
    text, memory = compiled.as_text(), compiled.memory_analysis()
    hardware, found = HARDWARE[about["target"]], collectives(text, about["devices"])
    # New parameters are written over the old ones.
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    peak += memory.output_size_in_bytes - memory.alias_size_in_bytes
    accessed = (compiled.cost_analysis() or {}).get("bytes accessed", 0)
    rate = hardware.flops_bfloat16 if about["dtype"] == "bfloat16" else hardware.flops
    sides = [int(side) for side in about["topology"].split("x")]
    links, hops = hardware.links, sum(sides)
    if hardware.between_hosts and sides[0] > 1:
        links = hardware.between_hosts
    seconds = {
        "arithmetic_seconds": flops / rate,
        "memory_seconds": accessed / hardware.bandwidth,
        "communication_seconds": sum(one.sent / links + HOP * hops for one in found),
    }
    step = max(seconds["arithmetic_seconds"], seconds["memory_seconds"])
    step += seconds["communication_seconds"]
    return {
        "memory": peak,
        "fits": peak <= hardware.memory,
        "flops": flops,
        "accessed": accessed,
        "loops": " while(" in text,
        "collectives": [one._asdict() for one in found],
        "sent": sum(one.sent for one in found),
        **seconds,
        "step_seconds": step,
    }


HEADINGS = ("topology", "devices", "images per device", "memory, 10^6 bytes", "collectives")
HEADINGS += ("sent, 10^6 bytes", "arithmetic, ms", "memory, ms", "communication, ms", "step, ms")
HEADINGS += ("images/s", "efficiency")


def cells(row: dict, first: dict) -> list[str]:
    """Returns a row as the table shows it; its efficiency is that of the first row's devices."""
    begin = [row["topology"], str(row["devices"]), f"{row['batch_size'] // row['devices']:,}"]
    if "error" in row:
        return [*begin, "too much", *["-"] * (len(HEADINGS) - 4)]
    images = row["batch_size"] / row["step_seconds"]
    alone = first["batch_size"] / first["step_seconds"] / first["devices"]
    kinds = [one["kind"] for one in row["collectives"]]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    bound = "> " if row["loops"] else ""  # bodies of loops count once
    memory_time = f"{bound}{1e3 * row['memory_seconds']:.3f}" if row["accessed"] else "-"
    times = ("arithmetic_seconds", "communication_seconds", "step_seconds")
    arithmetic, communication, step = (f"{1e3 * row[name]:.3f}" for name in times)
    return [
        *begin,
        f"{row['memory'] / 1e6:,.0f}" + ("" if row["fits"] else ", too much"),
        counts or "none",
        f"{row['sent'] / 1e6:,.1f}",
        arithmetic,
        memory_time,
        communication,
        step,
        f"{images:,.0f}",
        f"{images / row['devices'] / alone:.2f}",
    ]


def table(
    network: Config, batch_size: int | None, target: str, topologies: Iterable[str], shards: int = 1
) -> list[dict]:
    """Prints the row of each topology as soon as it is known, and returns them.

    Args:
      batch_size: of all devices; None: :data:`EACH` images on each.
      network, target, topologies, shards: see :func:`row`.
    """
    print(f"|{'|'.join(HEADINGS)}|\n{'|---' * len(HEADINGS)}|", flush=True)
    rows: list[dict] = []
    for topology in topologies:
        together = batch_size or EACH * len(targets.devices(target, topology))
        rows.append(row(network, together, target, topology, shards))
        first = next((row for row in rows if "error" not in row), rows[0])
        print(f"|{'|'.join(cells(rows[-1], first))}|", flush=True)
    return rows


def implementation(name: str, target: str) -> str | PassKernels:
    """Returns what the library takes as an implementation of routing that is named in a flag."""
    if name == "pallas":
        return api.pass_kernels("tpu" if target in targets.TPUS else "gpu")
    return STREAM if name == "stream" else name


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags that :func:`from_flags` reads, besides those of :mod:`kernels.aot`."""
    common = {"flag_values": flag_values}
    flags.DEFINE_bool("step", False, "plan a training step on many devices instead", **common)
    flags.DEFINE_list(
        "topology",
        "1x1",
        "with --step: the devices, comma-separated. TPUs: sides of the slice, such as 4x4. GPUs: "
        "hosts times GPUs of a host, such as 2x8",
        **common,
    )
    flags.DEFINE_enum(
        "network", "capsnet_mnist", list(capsjax.PRESETS), "with --step: a preset", **common
    )
    numbers = {"lower_bound": 1, "upper_bound": 2**31 - 1, **common}
    flags.DEFINE_integer(
        "batch_size",
        None,
        f"with --step: images of all devices together; by default {EACH} on each",
        **numbers,
    )
    flags.DEFINE_integer(
        "capsule_shards",
        1,
        "with --step: parts into which the input capsules of the class capsules are divided",
        **numbers,
    )


def from_flags(F: flags.FlagValues) -> list[dict]:
    """Prints and returns a row of every topology.

    Raises:
      ValueError: flags that do not fit each other, or see :func:`row`.
    """
    if F.target == "all":
        raise ValueError("--step needs one --target")
    network = capsjax.preset(F.network, dtype=F.dtype)
    is_capsnet, given = isinstance(network, capsjax.CapsNetConfig), F["implementation"].present
    if F.capsule_shards > 1 and (given or not is_capsnet):
        raise ValueError("--capsule_shards needs a CapsNet, and no --implementation")
    name, *others = F.implementation if given else ["pallas"]
    if others:
        raise ValueError("--step needs one --implementation")
    if is_capsnet and F.capsule_shards == 1:
        kernels = implementation(name, F.target)
        network = dataclasses.replace(network, routing_implementation=kernels)
    print(f"{F.target}, {F.network}, {F.dtype}, capsules in {F.capsule_shards} parts\n")
    return table(network, F.batch_size, F.target, F.topology, F.capsule_shards)
