"""The capsules of a layer: poses and activations."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from capsjax.routing import RoutingOutput
from capsjax.squash import safe_norm


class Capsules(NamedTuple):
    """The capsules of a layer, for a batch."""

    pose: jax.Array  # [B, I, K]
    activation: jax.Array  # [B, I]


def as_capsules(x: Capsules | RoutingOutput | chex.Array) -> Capsules | RoutingOutput:
    """Give poses ``[B, I, K]`` that come alone their lengths as activations.

    Raises:
      TypeError: they are neither capsules nor an array of poses.
    """
    if hasattr(x, "pose") and hasattr(x, "activation"):
        return x
    if isinstance(x, (jax.Array, np.ndarray)) and x.ndim == 3:
        return Capsules(x, safe_norm(jnp.asarray(x)))
    kind = f"an array of shape {x.shape}" if hasattr(x, "shape") else type(x).__name__
    raise TypeError(f"input capsules are Capsules or an array of poses [B, I, K], not {kind}")
