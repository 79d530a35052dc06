"""The type in which sums of products are accumulated, and the layout of their gradients."""

import functools

import chex
import jax
import jax.numpy as jnp


def accumulator(*dtypes) -> jnp.dtype:
    """Return float64 if any of the types is float64, otherwise float32.

    Example:
      >>> accumulator(jnp.bfloat16).name
      'float32'
    """
    return jnp.dtype(jnp.float64 if jnp.float64 in map(jnp.dtype, dtypes) else jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(a: chex.Array, b: chex.Array, spec: str) -> jax.Array:
    """Compute ``einsum(spec, a, b)`` in the dtype of ``a``, accumulated in its :func:`accumulator`.

    The gradients are sums in the layouts of ``a`` and ``b``. Those that JAX derives are transposed,
    ``[o, p]`` for ``[p, o]``, and on a CPU the transposition of large operands takes longer than
    the sums. There is no forward-mode derivative.
    """
    wide = jnp.einsum(spec, a, b, preferred_element_type=accumulator(a.dtype))
    return wide.astype(a.dtype)


def _product_forward(a, b, spec):
    return product(a, b, spec), (a, b)


def _product_backward(spec, operands, dy):
    a, b = operands
    operand_specs, of_y = spec.split("->")
    of_a, of_b = operand_specs.split(",")
    da = product(dy, b, f"{of_y},{of_b}->{of_a}")
    return da, product(a, dy, f"{of_a},{of_y}->{of_b}").astype(b.dtype)


product.defvjp(_product_forward, _product_backward)
