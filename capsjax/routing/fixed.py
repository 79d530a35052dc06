"""Couplings that do not depend on the example: controls for claims about routing.

One pass, and with softmax couplings one matrix product. With a transformation matrix for every
pair (i, j) all of these have the function class of :func:`uniform`, because c_ij W_ij is just
another W_ij: differences between them are differences of optimization. With shared matrices
they are not.
"""

import dataclasses

import jax
import jax.numpy as jnp

from capsjax.routing.base import Routing
from capsjax.routing.dynamic import dynamic


def uniform(*, bias: bool = False, squash: str = "paper") -> Routing:
    r"""Returns uniform couplings: :math:`v_j = \mathrm{squash}(\sum_i \hat u_{j|i} / J)`.

    This is no routing, or dynamic routing with one iteration. Published evidence finds this control
    about as good (Paik et al. 2019, Gu & Tresp 2020, Byerly et al. 2021). Safe for votes up to
    1e15.

    Args:
      bias, squash: see :func:`~capsjax.routing.dynamic.dynamic`.
    """
    return dynamic(1, bias=bias, squash=squash, name="uniform")


def static(*, bias: bool = False, squash: str = "paper") -> Routing:
    r"""Returns couplings learned by back-propagation: :math:`c_i = \mathrm{softmax}(\theta_i)`.

    Parameters ``prior`` ``[I, J]``, theta, initially zero. Chen & Crandall, "Generalized Capsule
    Networks with Trainable Routing Procedure" (2018), with a softmax that they do not have. Safe
    for votes up to 1e15.

    Args:
      bias, squash: see :func:`~capsjax.routing.dynamic.dynamic`.
    """
    return dynamic(1, prior="learned", bias=bias, squash=squash, name="static")


def random(*, bias: bool = False, squash: str = "paper") -> Routing:
    r"""Returns couplings that are drawn and not trained: :math:`c_i = \mathrm{softmax}(\theta_i)`.

    No paper: a control. ``prior`` ``[I, J]``, theta, is standard normal and a constant, counted
    among the parameters. Safe for votes up to 1e15.

    Args:
      bias, squash: see :func:`~capsjax.routing.dynamic.dynamic`.
    """
    routing = static(bias=bias, squash=squash)

    def init_params(key, sizes):
        prior = jax.random.normal(key, (sizes.I, sizes.J))
        return routing.init_params(key, sizes) | {"prior": prior}

    return _constant_prior(routing, name="random", init_params=init_params)


def frozen(*, bias: bool = False, squash: str = "paper") -> Routing:
    r"""Returns the mean couplings of a trained network, to test whether routing needs its inputs.

    ``prior`` ``[I, J]`` is a constant, counted among the parameters: the logarithm of the mean
    couplings, see :func:`log_mean_coupling`. Until it is set, couplings are even. Mitterreiter et
    al., "Why Capsule Neural Networks Do Not Scale" (2023), find routing nearly static. Safe for
    votes up to 1e15.

    Args:
      bias, squash: see :func:`~capsjax.routing.dynamic.dynamic`.
    """
    return _constant_prior(static(bias=bias, squash=squash), name="frozen")


def _constant_prior(routing, **fields):
    """Replaces fields of a routing, also of what it becomes in a layer."""
    fields |= {"constants": ("prior",)}

    def for_sizes(*layer):
        return dataclasses.replace(routing.for_sizes(*layer), **fields)

    return dataclasses.replace(routing, for_sizes=for_sizes, **fields)


def log_mean_coupling(total: jax.Array, examples: int) -> jax.Array:
    """Returns the parameter ``prior`` of :func:`frozen`, whose softmax is the mean coupling.

    Args:
      total: sum of the coupling coefficients of all examples, ``[I, J]``.
      examples: their number.

    Example:
      >>> c = jnp.array([[0.25, 0.75]])
      >>> jax.nn.softmax(log_mean_coupling(2 * c, 2)).round(2).tolist()
      [[0.25, 0.75]]
    """
    return jnp.log(jnp.maximum(total / examples, jnp.finfo(total.dtype).tiny))
