"""Which implementation runs where: the kernels behind one name.

``auto`` takes the best that can run and never fails; a named implementation that cannot run
says why. Neither looks at how large the problem is: what a kernel cannot take it refuses with
:class:`~kernels.blocks.Unsupported` while it is traced, and ``auto`` then streams.
"""

import functools
import importlib
from collections.abc import Callable, Sequence
from types import ModuleType

import chex
import jax
import jax.numpy as jnp

from capsjax import votes
from capsjax.backend import backend
from capsjax.routing import PassKernels, stream
from capsjax.routing.agreement import check_inputs
from kernels.blocks import Unsupported, check_dtype

IMPLEMENTATIONS = ("auto", "naive", "stream", "pallas", "pallas_interpret")
VOTES_IMPLEMENTATIONS = ("auto", "xla", "pallas", "pallas_interpret")
PLATFORMS = ("tpu", "gpu")


def select(name: str, devices: Sequence[jax.Device], *, divided: bool = False) -> str | PassKernels:
    """What to give to the library as the implementation of routing.

    Args:
      name: one of :data:`IMPLEMENTATIONS`. ``naive`` and ``stream``: see
        :func:`capsjax.routing.route`. ``pallas``: the kernels of this package.
        ``pallas_interpret``: the same in Pallas' interpreter, on any device, slowly.
        ``auto``: ``pallas`` where it runs, otherwise what the library chooses.
      devices: those that the program runs on, of one kind.
      divided: the compiler divides the program among them (``jit`` over several devices),
        which it can't do with a kernel; ``shard_map`` and ``pmap`` hand it a whole part.

    Raises:
      ValueError: unknown name, or ``pallas`` where it can't run; one line that says why.

    Example:
      >>> select("auto", jax.devices("cpu"))
      'auto'
    """
    if name not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation must be one of {', '.join(IMPLEMENTATIONS)}, not {name!r}"
        )
    if name in ("naive", "stream"):
        return name
    platform = devices[0].platform
    if name == "pallas_interpret":
        return pass_kernels("gpu" if platform == "gpu" else "tpu", interpret=True)
    why_not = _why_not(devices[0], divided)
    if name == "pallas":
        if why_not:
            raise ValueError(why_not)
        return pass_kernels(platform)
    if why_not:
        return "auto"
    pairs = zip(pass_kernels(platform), stream.STREAM)
    return PassKernels(*(functools.partial(_first, kernel, other) for kernel, other in pairs))


def _first(kernel: Callable, other: Callable, *args):
    try:
        return kernel(*args)
    except Unsupported:
        return other(*args)


def _why_not(device: jax.Device, divided: bool) -> str | None:
    """The reason why kernels can't run on a device, or None."""
    if device.platform not in PLATFORMS:
        return (
            f"pallas kernels run on TPU and NVIDIA GPU, not on {device.platform}; "
            "stream runs everywhere, pallas_interpret too (slowly)"
        )
    if divided:
        return (
            "the compiler can't divide pallas kernels among several devices: "
            "use shard_map, one device, or stream"
        )
    if device.platform == "gpu":
        capability = getattr(device, "compute_capability", "")
        if not capability.replace(".", "").isdigit() or float(capability) < 8:
            return (
                f"pallas kernels need an NVIDIA GPU of the A100's generation or later, not {device}"
            )
        try:
            _module("routing_pass", "gpu")
        except ImportError as error:
            return f"this JAX ({jax.__version__}) has no Pallas for GPUs: {error}"
    return None


def pass_kernels(platform: str, *, interpret=False) -> PassKernels:
    """The kernels of routing for a platform, to be given to :func:`capsjax.routing.route`.

    Args:
      platform: ``tpu`` or ``gpu``.
      interpret: run by Pallas' interpreter, on any device; for tests.

    Raises:
      ValueError: unknown platform.
    """
    module = _module("routing_pass", platform)
    functions = (getattr(module, name) for name in PassKernels._fields)
    return PassKernels(
        *(functools.partial(function, interpret=interpret) for function in functions)
    )


def _module(kernel: str, platform: str) -> ModuleType:
    if platform not in PLATFORMS:
        raise ValueError(f"platform must be one of {', '.join(PLATFORMS)}, not {platform!r}")
    return importlib.import_module(f"kernels.{kernel}_{platform}")


def prediction_vectors(
    u: chex.Array, W: chex.Array, *, implementation: str = "auto", platform: str | None = None
) -> jax.Array:
    r"""Votes :math:`\hat u_{j|i} = W_{ij} u_i` of a batch, for algorithms that need them whole.

    Args:
      u: outputs of the input capsules, ``[B, I, K]``.
      W: transformation matrices, ``[I, J, D, K]``, of the type of u.
      implementation: ``xla``, ``pallas``, ``pallas_interpret``, or ``auto``: the kernel on an
        accelerator, except for batches that do not fill the lanes of a TPU.
      platform: whose kernel, ``tpu`` or ``gpu``; None for that of the default device.

    Returns:
      Votes ``[B, I, J, D]``, float32 (XLA: float64 for float64).

    Raises:
      ValueError: unknown implementation or platform, or a kernel where there is none.
      AssertionError: wrong or different types, or shapes that do not agree.

    Example:
      >>> u, W = jnp.ones((2, 5, 8)), jnp.ones((5, 3, 16, 8))
      >>> prediction_vectors(u, W).shape
      (2, 5, 3, 16)
    """
    check_inputs(u, W)
    if implementation not in VOTES_IMPLEMENTATIONS:
        legal = ", ".join(VOTES_IMPLEMENTATIONS)
        raise ValueError(f"implementation must be one of {legal}, not {implementation!r}")
    here = platform or backend()
    if implementation == "auto":
        small = here == "tpu" and u.shape[0] < 128
        wide = u.dtype == jnp.float64
        implementation = "xla" if here not in PLATFORMS or small or wide else "pallas"
    if implementation == "xla":
        return jax.vmap(votes.prediction_vectors, (0, None))(u, W)
    if implementation == "pallas_interpret" and here not in PLATFORMS:
        here = "tpu"
    check_dtype("u", u)
    if here not in PLATFORMS:
        raise ValueError(f"pallas kernels run on TPU and NVIDIA GPU, not on {here}; use xla")
    interpret = implementation == "pallas_interpret"
    inputs = u.transpose(1, 2, 0), W.transpose(1, 2, 0, 3)
    return _votes(here, interpret, *inputs).transpose(3, 0, 1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _votes(platform, interpret, u, W):
    return _module("prediction_vectors", platform).forward(u, W, interpret=interpret)


def _votes_forward(platform, interpret, u, W):
    return _votes(platform, interpret, u, W), (u, W)


def _votes_backward(platform, interpret, inputs, dvotes):
    u, W = inputs
    module = _module("prediction_vectors", platform)
    du = module.backward_u(W, dvotes, interpret=interpret)
    dW = module.backward_W(u, dvotes, interpret=interpret)
    return du.astype(u.dtype), dW.astype(W.dtype)


_votes.defvjp(_votes_forward, _votes_backward)
