"""Accelerators and the ways to share a batch among them."""

import contextlib
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.config import UserError
from experiments.files import (
    check_addresses,
    check_private,
    check_programs,
    local_path,
    make_private,
)
from experiments.training import collectives, memory, processes

AXIS, CAPSULES = "data", "capsules"  # of the mesh of devices
_INSTALL = {"gpu": 'pip install -U "jax[cuda13]"', "tpu": 'pip install -U "jax[tpu]"'}


def cache_folder(cache_dir: str) -> Path:
    """Returns the folder of decoded data sets and compiled programs."""
    if cache_dir and cache_dir != "none":
        return local_path(cache_dir, "cache_dir")
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:
        raise UserError(f"no home folder ({error}); name a --cache_dir") from error
    return Path(base) / "capsjax"


def keep_compiled_programs(cache_dir: str) -> None:
    """Turns on JAX's persistent compilation cache, unless ``cache_dir`` is 'none'.

    Raises:
      UserError: others may write to it, or it is damaged and can't be corrected. It holds
        programs, which are run.
    """
    if cache_dir == "none":
        return
    folder = cache_folder(cache_dir)
    for place in (folder, folder / "xla"):
        check_private(place)
    check_programs(folder / "xla")
    with contextlib.suppress(OSError):  # then JAX says what it can't write
        make_private(folder, "xla")
    jax.config.update("jax_compilation_cache_dir", str(folder / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def find_devices(accelerator: str, num_devices: int = 0) -> list[jax.Device]:
    """Returns the devices of a run; to be called before anything else touches a device.

    Those of several processes are in the order of the processes.

    Args:
      accelerator: auto, cpu, gpu or tpu.
      num_devices: of each process, 0 for all; on CPU more than one are simulated.

    Raises:
      UserError: the accelerator is absent, or has fewer devices; or there are too few addresses.
    """
    check_addresses()
    if accelerator == "cpu":
        jax.config.update("jax_platforms", "cpu")
    if accelerator in ("auto", "cpu") and num_devices > 1:
        memory.check_devices(num_devices)
        try:
            jax.config.update("jax_num_cpu_devices", num_devices)
        except RuntimeError:  # devices exist already; their number is checked below
            pass
    try:
        found = jax.local_devices(backend=None if accelerator == "auto" else accelerator)
    except RuntimeError as error:
        install = _INSTALL.get(accelerator, "check JAX_PLATFORMS")
        raise UserError(
            f"--accelerator={accelerator}: JAX {jax.__version__} sees no such device here "
            f"(driver, or {install}?)"
        ) from error
    if accelerator != "auto":
        jax.config.update("jax_default_device", found[0])
    if num_devices > len(found):
        raise UserError(
            f"--num_devices={num_devices}: only {len(found)} {found[0].platform} devices here"
        )
    own = found[: num_devices or len(found)]
    return own if processes.count() == 1 else _of_all_processes(own)


def _of_all_processes(own: list[jax.Device]) -> list[jax.Device]:
    """The devices of a run of several processes, each with as many as this one."""
    platform = own[0].platform
    found = [jax.local_devices(n, platform)[: len(own)] for n in range(processes.count())]
    if numbers := [len(devices) for devices in found if len(devices) != len(own)]:
        raise UserError(
            f"this process has {len(own)} devices and another one {numbers[0]}: give all the same "
            "--num_devices"
        )
    return [device for devices in found for device in devices]


def quick_to_compile(devices: list[jax.Device]) -> dict[str, int]:
    """Returns options of ``jax.jit`` for a program that runs once, to spend less on compiling."""
    # Level 0 compiles a little faster still, and draws initial weights four times as slowly.
    return {"xla_backend_optimization_level": 1} if devices[0].platform == "cpu" else {}


def mesh_of(devices: list[jax.Device], parts: int = 1) -> Mesh:
    """Returns a mesh with one data axis, and one of capsules if they have several parts.

    All arrays of a run have the same mesh, as JAX 0.10 requires.
    """
    # Explicit axes would reject the reshape into capsules.
    mesh = jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)
    if parts == 1:
        return mesh
    axes = (AXIS, CAPSULES)
    return Mesh(mesh.devices.reshape(-1, parts), axes, axis_types=(AxisType.Auto,) * 2)


def _among_all(mesh: Mesh) -> NamedSharding:
    """The sharding whose first axis is divided among all devices."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def replicate(tree, devices: list[jax.Device], parts: int = 1):
    """Copies a pytree to every device of :func:`mesh_of`."""
    return collectives.place(tree, NamedSharding(mesh_of(devices, parts), PartitionSpec()))


def split_batch(tree, devices: list[jax.Device], parts: int = 1):
    """Divides the first axis of every leaf among the devices of :func:`mesh_of`."""
    return collectives.place(tree, _among_all(mesh_of(devices, parts)))


def own_rows(count: int, devices: list[jax.Device], parts: int = 1) -> np.ndarray:
    """Returns which rows of ``count`` the devices of this process get of :func:`split_batch`."""
    places = _among_all(mesh_of(devices, parts)).addressable_devices_indices_map((count,))
    return np.unique(np.concatenate([np.arange(count)[index] for index in places.values()]))


def parallelize(
    make_body: Callable,
    strategy: str,
    devices: list[jax.Device],
    state: Any = None,
    parts: int = 1,
) -> Callable:
    """Spreads one step body over devices.

    Args:
      make_body: ``make_body(axis_name, parts, constrain)`` gives
        ``body(state, *inputs, which)``, which works on part ``which`` of ``parts`` equal
        parts of every batch and averages over ``axis_name`` unless that is None;
        ``constrain`` marks the batch as divided among the devices. State, inputs and
        results are the same on all devices.
      strategy: ``jit`` (the compiler divides the work), ``shard_map`` or ``pmap`` (each
        device runs the body on its part).
      devices: at least one.
      state: shardings of the state that jit returns, where it is not the same on all devices.
      parts: of the capsules, see :func:`mesh_of`; jit alone has several.

    Returns:
      ``run(state, *inputs)``. jit and shard_map take over the memory of ``state``.
    """
    count = len(devices)
    mesh = mesh_of(devices, parts)
    if strategy == "jit":
        divided = _among_all(mesh)

        def constrain(batch):
            return jax.lax.with_sharding_constraint(batch, divided) if count > 1 else batch

        body = make_body(axis_name=None, parts=1, constrain=constrain)
        results = state and (state, NamedSharding(mesh, PartitionSpec()))

        def run(state, *inputs):
            return body(state, *inputs, 0)

        return jax.jit(run, donate_argnums=0, out_shardings=results)

    body = make_body(axis_name=AXIS, parts=count, constrain=lambda batch: batch)
    if strategy == "shard_map":
        # check_vma=True would sum the gradients of the replicated parameters by itself,
        # and the pmean inside the body would then leave them `count` times too large.
        mapped = jax.shard_map(
            lambda state, *inputs: body(state, *inputs, jax.lax.axis_index(AXIS)),
            mesh=mesh,
            in_specs=PartitionSpec(),
            out_specs=PartitionSpec(),
            check_vma=False,
        )
        return jax.jit(mapped, donate_argnums=0)
    if strategy == "pmap":
        which = np.arange(count)

        @functools.cache
        def mapped(inputs: int):
            in_axes = (None,) * (1 + inputs) + (0,)
            return jax.pmap(body, AXIS, in_axes=in_axes, out_axes=None, devices=devices)

        return lambda state, *inputs: mapped(len(inputs))(state, *inputs, which)
    raise ValueError(f"strategy must be jit, shard_map or pmap, not {strategy!r}")
