"""StableHLO: a network as the bytes that ``jax.export`` writes, for CPUs, NVIDIA GPUs and TPUs."""

import contextlib
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax import export

from capsjax.backend import portable
from experiments.exchange.network import Network

PLATFORMS = ("cpu", "cuda", "tpu")
FILE = "model.stablehlo"


def to_bytes(network: Network) -> bytes:
    """Returns the file of a network, weights included, for any size of the batch."""

    def function(images):
        return network.apply(network.variables, images)

    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *network.shape), network.dtype)
    with portable(), _without_places():
        exported = export.export(jax.jit(function), platforms=PLATFORMS)(images)
    return bytes(exported.serialize())


@contextlib.contextmanager
def _without_places() -> Iterator[None]:
    """Leaves out where in the source each operation is, with the folders of this machine."""
    before = jax.config.jax_traceback_in_locations_limit
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", before)


def runner(data: bytes) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Returns the function of a file: images to outputs by name, on the default device."""
    call = jax.jit(export.deserialize(bytearray(data)).call)
    return lambda images: jax.device_get(call(images))
