"""The Pallas kernels for this device, where their package is installed and they run."""

import importlib
from collections.abc import Sequence

import jax

from capsjax.companions import find_companion
from capsjax.routing.agreement import PassKernels


def select_kernels(name: str) -> str | PassKernels:
    """Returns what the implementation ``auto``, ``pallas`` or ``pallas_interpret`` is here.

    It is chosen as in the commands (:func:`kernels.api.select`), for JAX's default device. The
    compiler cannot divide a program with kernels among devices. ``auto`` therefore takes kernels
    only if one device is visible, or inside ``shard_map``.

    Args:
      name: one of the three.

    Returns:
      Kernels, or ``auto`` where there are none to choose.

    Raises:
      ValueError: ``pallas`` or ``pallas_interpret`` cannot run here, with the reason.
    """
    package, devices = find_companion("kernels"), _devices()
    if package and devices:
        api = importlib.import_module(f"{package}.api")
        return api.select(name, devices, divided=len(devices) > 1 and not _inside_shard_map())
    if name == "auto":
        return name
    raise ValueError(
        f"implementation {name!r} needs the package of kernels, which is not installed with capsjax"
        if devices
        else f"implementation {name!r} is for a present device: pass PassKernels for an absent one"
    )


def divided() -> bool:
    """Returns whether the compiler may divide a batch among devices, of the mesh or all visible."""
    size = max(jax.sharding.get_abstract_mesh().size, len(jax.devices()))
    return size > 1 and not _inside_shard_map()


def _devices() -> Sequence[jax.Device]:
    """Returns the visible devices of the default kind; none in a compilation for absent ones."""
    if jax.sharding.get_abstract_mesh().abstract_device is not None:
        return ()
    default = jax.config.jax_default_device
    if default is None or isinstance(default, str):
        return jax.devices(default)
    return (default,)


def _inside_shard_map() -> bool:
    mesh = jax.sharding.get_abstract_mesh()
    return bool(mesh.manual_axes) and set(mesh.manual_axes) == set(mesh.axis_names)
