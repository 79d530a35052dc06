"""Which implementation runs where: the kernels behind one name.

A named implementation that cannot run raises an error with the reason. ``auto`` never fails: it
takes kernels only for shapes for which they were tried on this device and approved
(:mod:`kernels.approval`), which it looks up while it is traced, and otherwise streams.
"""

import functools
import importlib
from collections.abc import Sequence
from types import ModuleType

import chex
import jax
import jax.numpy as jnp

from capsjax import votes
from capsjax.backend import backend
from capsjax.routing import IMPLEMENTATIONS, PassKernels, stream
from capsjax.routing.agreement import check_inputs
from kernels.approval import is_approved, shapes_of
from kernels.blocks import check_dtype

VOTES_IMPLEMENTATIONS = ("auto", "xla", "pallas", "pallas_interpret")
PLATFORMS = ("tpu", "gpu")


def pass_kernels(platform: str, *, interpret=False) -> PassKernels:
    """Returns the kernels of routing for a platform, for :func:`capsjax.routing.route`.

    Args:
      platform: ``tpu`` or ``gpu``.
      interpret: run in Pallas' interpreter, on any device; for tests.

    Raises:
      ValueError: unknown platform.
    """
    module = _module("routing_pass", platform)
    names = ("forward", "backward_state", "backward_inputs")
    passes = (functools.partial(getattr(module, name), interpret=interpret) for name in names)
    how = {"implementation": "pallas_interpret" if interpret else "pallas", "platform": platform}
    return PassKernels(*passes, votes=functools.partial(prediction_vectors, **how))


def select(name: str, devices: Sequence[jax.Device], *, divided: bool = False) -> str | PassKernels:
    """Returns what the library takes as the implementation of routing.

    Args:
      name: one of :data:`capsjax.routing.IMPLEMENTATIONS`. ``naive`` and ``stream``: see
        :func:`capsjax.routing.route`. ``pallas``: the kernels of this package.
        ``pallas_interpret``: the same in Pallas' interpreter, on any device, slowly.
        ``auto``: where ``pallas`` runs, kernels that stream all shapes but the approved ones
        (:mod:`kernels.approval`); otherwise ``auto``, by which the library chooses.
      devices: those that the program runs on, of one kind.
      divided: the compiler divides the program among them (``jit`` over several devices),
        which it cannot do with a kernel; ``shard_map`` and ``pmap`` call it on each part.

    Raises:
      ValueError: unknown name, or ``pallas`` where it cannot run, with the reason in one line.

    Example:
      >>> select("auto", jax.devices("cpu"))
      'auto'
    """
    if name not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation must be one of {', '.join(IMPLEMENTATIONS)}, not {name!r}"
        )
    device = devices[0]
    if name in ("naive", "stream"):
        return name
    if name == "pallas_interpret":
        return pass_kernels("gpu" if device.platform == "gpu" else "tpu", interpret=True)
    if reason := _why_not(device, divided):
        if name == "pallas":
            raise ValueError(reason)
        return "auto"
    kernels = pass_kernels(device.platform)
    return kernels if name == "pallas" else _if_approved(kernels, device.platform)


def _if_approved(kernels: PassKernels, platform: str) -> PassKernels:
    """Returns kernels that stream where they are not approved, and leave votes to XLA."""

    def either(kernel, other, normalizer, inputs, *args):
        approved = is_approved(shapes_of(platform, inputs, args[normalizer]))
        return (kernel if approved else other)(inputs, *args)

    # The last number is the place of the normalizer among the arguments after the inputs.
    parts = zip(kernels[:3], stream.STREAM[:3], (1, 2, 2))
    return PassKernels(*(functools.partial(either, *part) for part in parts))


def _why_not(device: jax.Device, divided: bool) -> str | None:
    """Returns the reason why kernels can't run on a device, or None."""
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


def _module(kernel: str, platform: str) -> ModuleType:
    if platform not in PLATFORMS:
        raise ValueError(f"platform must be one of {', '.join(PLATFORMS)}, not {platform!r}")
    return importlib.import_module(f"{__package__}.{kernel}_{platform}")


def prediction_vectors(
    u: chex.Array, W: chex.Array, *, implementation: str = "auto", platform: str | None = None
) -> jax.Array:
    r"""Computes the votes :math:`\hat u_{j|i} = W_{ij} u_i` of a batch, materialized.

    Args:
      u: outputs of the input capsules, ``[B, I, K]``.
      W: transformation matrices, ``[I, J, D, K]``, of the type of u.
      implementation: ``xla``, ``pallas``, ``pallas_interpret``, or ``auto``: the kernel on an
        accelerator, except for batches that do not fill the lanes of a TPU.
      platform: the platform of the kernel, ``tpu`` or ``gpu``; None for the default device's.

    Returns:
      Votes ``[B, I, J, D]``, float32 (XLA: float64 for float64).

    Raises:
      ValueError: unknown implementation or platform, or a kernel on a platform without one.
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
    if platform not in (None, *PLATFORMS):
        raise ValueError(f"platform must be one of {', '.join(PLATFORMS)}, not {platform!r}")
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
