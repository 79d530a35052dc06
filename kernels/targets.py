"""Compiles for TPUs and NVIDIA GPUs on a machine without either.

XLA and Mosaic compile for a described device as they do for one that is present, so that the
limits of on-chip memory, the memory a program needs and the errors of a kernel show up on any
machine. Nothing can be run. The packages of ``requirements-aot.txt`` contain the compilers.
"""

import functools
import os
from collections.abc import Callable
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import jax
from jax.experimental import topologies

# The smallest topology of every generation that libtpu knows.
TPUS = {
    "tpu_v4": "v4:2x2x1",
    "tpu_v5e": "v5e:1x1",
    "tpu_v5p": "v5p:2x2x1",
    "tpu_v6e": "v6e:1x1",
    "tpu_7x": "tpu7x:2x2x1",
}
# What these NVIDIA GPUs have in common, and what differs. Sizes in bytes, bandwidth per second.
_COMMON_GPU = """
    threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
    thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
    block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
    registers_per_core_limit: 65536 registers_per_block_limit: 65536
    shared_memory_per_block: 49152"""
_FIELDS = """core_count fpus_per_core clock_rate_ghz memory_bandwidth device_memory_size
    l2_cache_size shared_memory_per_core shared_memory_per_block_optin""".split()
_A100 = (108, 64, 1.41, 2039040000000, 85100068864, 41943040, 167936, 166912)
_H100 = (132, 128, 1.98, 3352320000000, 84942979072, 52428800, 233472, 232448)
_H200 = (132, 128, 1.98, 4800000000000, 151397597184, 52428800, 233472, 232448)
_B200 = (148, 128, 1.965, 7672320000000, 191514411008, 132644864, 233472, 232448)
# Name, major compute capability, fields.
GPUS = {
    "a100": ("NVIDIA A100-SXM4-80GB", 8, dict(zip(_FIELDS, _A100))),
    "h100": ("NVIDIA H100 80GB HBM3", 9, dict(zip(_FIELDS, _H100))),
    "h200": ("NVIDIA H200 141GB HBM3e", 9, dict(zip(_FIELDS, _H200))),
    "b200": ("NVIDIA B200", 10, dict(zip(_FIELDS, _B200))),
}
TARGETS = (*TPUS, *GPUS)
PACKAGES = {"tpu": ("libtpu",), "cuda": ("jax-cuda13-pjrt", "jax-cuda13-plugin")}


def platform(target: str) -> str:
    """Returns JAX's name of the platform of a target, ``tpu`` or ``cuda``.

    Raises:
      ValueError: unknown target.
    """
    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, not {target!r}")
    return "tpu" if target in TPUS else "cuda"


def why_unavailable(target: str) -> str | None:
    """Returns None if the compiler of a target is installed, else how to install it."""
    for package in PACKAGES[platform(target)]:
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            install = "pip install --no-deps -r requirements-aot.txt"
            return f"compiling for {target} needs {package}: {install}"
    return None


def versions(target: str) -> dict[str, str]:
    """Returns the versions of the packages that compile for an available target."""
    return {p: metadata.version(p) for p in ("jax", "jaxlib", *PACKAGES[platform(target)])}


def compile(function: Callable, *specs: Any, target: str) -> jax.stages.Compiled:
    """Compiles a function for one device of a target.

    Args:
      function: what ``jax.jit`` takes.
      *specs: its arguments, pytrees of ``jax.ShapeDtypeStruct``; their sharding is replaced.
      target: one of :data:`TARGETS`; see :func:`why_unavailable`.

    Example (with libtpu)::

        x = jax.ShapeDtypeStruct((256, 256), "float32")
        compile(jnp.matmul, x, x, target="tpu_v5e").memory_analysis()
    """
    (device, *_) = devices(target)
    sharding = jax.sharding.SingleDeviceSharding(device)

    def place(leaf):
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    _, lowered = lower(jax.jit(function), *jax.tree.map(place, specs), target=target)
    return lowered.compile()


def lower(
    function: Callable, *specs: Any, target: str, axes: dict[str, int] | None = None
) -> tuple[Any, jax.stages.Lowered]:
    """Traces and lowers a function for the devices that its arguments are placed on.

    Args:
      function: the result of ``jax.jit``.
      *specs: its arguments, pytrees of ``jax.ShapeDtypeStruct`` with shardings of :func:`devices`.
      target: one of :data:`TARGETS`.
      axes: names and sizes of the axes of their mesh.

    Returns:
      The jaxpr and the lowered function.
    """
    with jax.sharding.use_abstract_mesh(abstract_mesh(target, axes or {})):
        traced = function.trace(*specs)
        return traced.jaxpr.jaxpr, traced.lower(lowering_platforms=(platform(target),))


def abstract_mesh(target: str, axes: dict[str, int]) -> jax.sharding.AbstractMesh:
    """Returns the mesh of devices of a target for :func:`lower`.

    Args:
      target: one of :data:`TARGETS`.
      axes: names and sizes of its axes, which are left to the compiler.
    """
    (device, *_) = devices(target)
    # Pallas asks the abstract mesh which device it writes a kernel for.
    cores = device.core_count if target in GPUS else device.num_cores
    abstract = jax.sharding.AbstractDevice(device.device_kind, cores, platform(target))
    kinds = (jax.sharding.AxisType.Auto,) * len(axes)
    return jax.sharding.AbstractMesh(
        tuple(axes.values()), tuple(axes), axis_types=kinds, abstract_device=abstract
    )


def gpu_config(target: str) -> str:
    """Returns the text of a ``GpuTargetConfigProto``, XLA's description of a GPU.

    XLA reads the limits of a kernel (threads, registers, shared memory) and the parameters of
    its cost model for fusion and tiling (cores, clock, bandwidth, cache) from it. The numbers
    are those that XLA publishes under ``xla/backends/gpu/target_config/specs``.
    """
    name, major, fields = GPUS[target]
    # "Accelerated" instructions exist in one generation only, such as wgmma of Hopper.
    extension = "ACCELERATED_FEATURES" if major >= 9 else "NONE"
    capability = f"cuda_compute_capability {{ major: {major} feature_extension: {extension} }}"
    info = " ".join([_COMMON_GPU, capability, *(f"{k}: {v}" for k, v in fields.items())])
    return (
        f'gpu_device_info {{ {info} }} platform_name: "CUDA" '
        f'dnn_version_info {{ major: 9 minor: 10 }} device_description_str: "{name}"'
    )


@functools.cache
def devices(target: str, topology: str = "") -> tuple:
    """Returns the devices of a topology, which can be compiled for.

    Args:
      target: one of :data:`TARGETS`.
      topology: of TPUs the sides of the slice, such as 4x4 or 2x2x4; of GPUs hosts times GPUs of a
        host, such as 2x8. Empty: the smallest one.

    Raises:
      ValueError: there is no such topology.
    """
    try:
        if platform(target) == "cuda":
            options = {"target_config": gpu_config(target), "topology": f"1x{topology or '1x1'}"}
            return tuple(topologies.get_topology_desc(platform="cuda", **options).devices)
        generation, _, smallest = TPUS[target].partition(":")
        with _quiet_libtpu():
            name = f"{generation}:{topology or smallest}"
            return tuple(topologies.get_topology_desc(name, platform="tpu").devices)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{target} has no topology {topology}: {reason}") from error


@contextmanager
def _quiet_libtpu():
    """Describes a machine to libtpu, which otherwise searches for one and logs its failure."""
    machine = {"TPU_ACCELERATOR_TYPE": "v5litepod-1", "TPU_WORKER_HOSTNAMES": "localhost"}
    added = {name: value for name, value in machine.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
