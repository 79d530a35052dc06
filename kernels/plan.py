"""What a training step needs on many devices, from their compilers alone.

``python -m kernels.aot --step --target=tpu_v5e --topology=4x4,16x16`` compiles the training step
of a network for devices that need not be present, with the batch divided among them. A row of the
table has the memory of a device, the collective operations and their bytes, and the time that a
step takes at least: the longer one of its arithmetic and its memory traffic at the rates of
:data:`kernels.hardware.HARDWARE`, and after that the communication. Nothing is run, hence nothing
is measured.
"""

import math
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import capsjax
from capsjax.models import Config
from kernels import targets
from kernels.collectives import collectives
from kernels.hardware import HARDWARE

AXIS = "data"
HOP = 1e-6  # seconds, an assumption: from a device to its neighbour, however few the bytes


def count_flops(jaxpr: Any) -> int:
    """Returns the operations of all matrix products and convolutions of a jaxpr.

    A multiplication and an addition count as two. Bodies of ``scan`` count as often as they run;
    those of ``while``, whose number of turns is unknown, once; the longest branch of ``cond``.
    Kernels of Pallas count what one block does, times the blocks.
    """
    total = 0
    for equation in jaxpr.eqns:
        name, given = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = given["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(left[n] for n in contracted)
        elif name == "conv_general_dilated":
            kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.size
            features = kernel[given["dimension_numbers"].rhs_spec[0]]
            total += 2 * out * math.prod(kernel) // features // given["batch_group_count"]
        elif name == "cond":
            total += max(count_flops(branch.jaxpr) for branch in given["branches"])
        else:
            times = given["length"] if name == "scan" else 1
            if name == "pallas_call":
                times = math.prod(given["grid_mapping"].grid)
            total += times * sum(map(count_flops, _inner(given.values())))
    return total


def _inner(values: Iterable) -> Iterable:
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _inner(value)
        elif hasattr(value, "eqns"):
            yield value
        elif hasattr(value, "jaxpr"):
            yield value.jaxpr


def training_step(network: Config, batch_size: int, axis_name: str | None = None) -> tuple:
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


def row(network: Config, batch_size: int, target: str, topology: str) -> dict:
    """Compiles the training step of a network and returns what it needs.

    Args:
      network: its batch is divided among the devices, its parameters are on all of them.
      batch_size: of all devices together.
      target: one of :data:`kernels.targets.TARGETS`.
      topology: see :func:`kernels.targets.devices`.

    Raises:
      ValueError: there is no such topology, or the batch can't be divided among its devices.
    """
    devices = np.array(targets.devices(target, topology))
    if batch_size % devices.size:
        raise ValueError(f"--batch_size={batch_size} can't be divided among {devices.size} devices")
    mesh = Mesh(devices, (AXIS,), axis_types=(AxisType.Auto,))
    step, *arguments = training_step(network, batch_size, AXIS)
    everywhere, divided = PartitionSpec(), PartitionSpec(AXIS)
    specs = everywhere, divided, divided, everywhere
    # Its mesh is that of :func:`kernels.targets.lower`.
    mapped = jax.shard_map(step, in_specs=specs, out_specs=everywhere, check_vma=False)

    def place(tree, spec):
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    call = [place(tree, spec) for tree, spec in zip(arguments, specs)]
    jitted, axes = jax.jit(mapped, donate_argnums=0), {AXIS: devices.size}
    jaxpr, lowered = targets.lower(jitted, *call, target=target, axes=axes)
    about = {"target": target, "topology": topology, "devices": devices.size}
    about |= {"batch_size": batch_size, "dtype": network.dtype}
    return about | needs(lowered.compile(), count_flops(jaxpr), about)


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
    images = row["batch_size"] / row["step_seconds"]
    alone = first["batch_size"] / first["step_seconds"] / first["devices"]
    kinds = [one["kind"] for one in row["collectives"]]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    bound = "> " if row["loops"] else ""  # bodies of loops count once
    memory_time = f"{bound}{1e3 * row['memory_seconds']:.3f}" if row["accessed"] else "-"
    times = ("arithmetic_seconds", "communication_seconds", "step_seconds")
    arithmetic, communication, step = (f"{1e3 * row[name]:.3f}" for name in times)
    return [
        row["topology"],
        str(row["devices"]),
        f"{row['batch_size'] // row['devices']:,}",
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


def table(network: Config, batch_size: int, target: str, topologies: Iterable[str]) -> list[dict]:
    """Prints the row of each topology as soon as it is known, and returns them; see :func:`row`."""
    print(f"|{'|'.join(HEADINGS)}|\n{'|---' * len(HEADINGS)}|", flush=True)
    rows: list[dict] = []
    for topology in topologies:
        rows.append(row(network, batch_size, target, topology))
        print(f"|{'|'.join(cells(rows[-1], rows[0]))}|", flush=True)
    return rows
