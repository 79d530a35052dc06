"""Losses and masks. Every function is written for one example; batch with vmap."""

import chex
import jax
import jax.numpy as jnp


def margin_loss(
    lengths: chex.Array,
    targets: chex.Array,
    *,
    m_plus: float = 0.9,
    m_minus: float = 0.1,
    down_weight: float = 0.5,
) -> jax.Array:
    r"""Margin loss, summed over the classes, for one example.

    .. math::
       L = \sum_k T_k \max(0, m^+ - \|v_k\|)^2
           + \lambda (1 - T_k) \max(0, \|v_k\| - m^-)^2

    Equation 4 of Sabour, Frosst & Hinton (2017).

    Args:
      lengths: lengths of the class capsules, ``[J]``, in [0, 1).
      targets: 1 for each class that is present and 0 otherwise, ``[J]``.
      m_plus: length above which a present class costs nothing.
      m_minus: length below which an absent class costs nothing.
      down_weight: weight lambda of the absent classes.

    Returns:
      A scalar.

    Example:
      >>> margin_loss(jnp.array([0.9, 0.3]), jnp.array([1.0, 0.0])).round(4).item()
      0.019999999552965164
    """
    chex.assert_rank(lengths, 1)
    chex.assert_equal_shape([lengths, targets])
    present = jnp.square(jnp.maximum(0, m_plus - lengths))
    absent = jnp.square(jnp.maximum(0, lengths - m_minus))
    return jnp.sum(targets * present + down_weight * (1 - targets) * absent)


def reconstruction_loss(reconstruction: chex.Array, image: chex.Array) -> jax.Array:
    """Sum (not mean) of the squared differences over all pixels of one example.

    The paper weights this with 0.0005; the mean in its place makes the term 784 times
    too small on MNIST.

    Args:
      reconstruction: pixels in [0, 1], any shape.
      image: pixels in [0, 1], the same shape.

    Returns:
      A scalar.
    """
    chex.assert_equal_shape([reconstruction, image])
    return jnp.sum(jnp.square(reconstruction - image))


def label_mask(label: chex.Array, num_classes: int) -> jax.Array:
    """Mask that keeps the capsule of the true class: the decoder's input in training.

    Args:
      label: class index, a scalar.
      num_classes: number J of classes.

    Returns:
      ``[J]``, float32.
    """
    return jax.nn.one_hot(label, num_classes, dtype=jnp.float32)


def argmax_mask(lengths: chex.Array) -> jax.Array:
    """Mask that keeps the longest capsule: the decoder's input when the label is unknown.

    Args:
      lengths: lengths of the class capsules, ``[J]``.

    Returns:
      ``[J]``, float32.
    """
    chex.assert_rank(lengths, 1)
    return label_mask(jnp.argmax(lengths), lengths.shape[0])


def mask_capsules(pose: chex.Array, mask: chex.Array) -> jax.Array:
    """Set all but the chosen capsules to zero.

    Args:
      pose: ``[J, D]``.
      mask: ``[J]``.

    Returns:
      ``[J, D]``.
    """
    chex.assert_rank([pose, mask], [2, 1])
    return pose * mask[:, None]
