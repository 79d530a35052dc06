"""Losses of class capsules and of images, written for one example; ``jax.vmap`` batches them."""

import warnings

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
    r"""Compute the margin loss of one example, summed over the classes.

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


def spread_loss(scores: chex.Array, targets: chex.Array, margin: chex.Numeric) -> jax.Array:
    r"""Compute the spread loss of one example: the true class should lead all others by a margin.

    .. math:: L = \sum_{j \ne t} \max(0, m - (a_t - a_j))^2

    Equation 3 of Hinton, Sabour & Frosst, "Matrix capsules with EM routing" (2018).

    Args:
      scores: activations a of the class capsules, ``[J]``, in [0, 1].
      targets: 1 for the class t that is present and 0 for the others, ``[J]``.
      margin: m, a scalar that grows during training, see :func:`spread_margin`.

    Returns:
      A scalar.

    Example:
      >>> spread_loss(jnp.array([0.75, 0.5]), jnp.array([1.0, 0.0]), 0.5).item()
      0.0625
    """
    chex.assert_rank([scores, margin], [1, 0])
    chex.assert_equal_shape([scores, targets])
    lead = jnp.sum(targets * scores) - scores
    return jnp.sum((1 - targets) * jnp.square(jnp.maximum(0, margin - lead)))


def spread_margin(progress: chex.Numeric) -> jax.Array:
    r"""Compute the margin of the spread loss at a point of training.

    .. math:: m = 0.2 + 0.7 \, p

    Hinton, Sabour & Frosst (2018) raise the margin from 0.2 to 0.9 during training, linearly,
    so that no capsules die at its beginning.

    Args:
      progress: p, a scalar: steps done divided by all steps, clipped to [0, 1].

    Returns:
      A scalar.

    Example:
      >>> [round(spread_margin(p).item(), 4) for p in (0, 0.5, 1, 2)]
      [0.2, 0.55, 0.9, 0.9]
    """
    chex.assert_rank(progress, 0)
    return 0.2 + 0.7 * jnp.clip(progress, 0, 1)


def cross_entropy_of_logits(logits: chex.Array, targets: chex.Array) -> jax.Array:
    r"""Compute the negative log-likelihood of the true class from logits, for one example.

    .. math:: L = -\sum_j T_j \log \mathrm{softmax}(a)_j

    The loss of Tsai et al. (2020) and Heinsen (2022).

    Args:
      logits: activations a of the class capsules, ``[J]``, of any sign.
      targets: 1 for the class that is present and 0 for the others, ``[J]``.

    Returns:
      A scalar.

    Example:
      >>> loss = cross_entropy_of_logits(jnp.array([0.25, 0.75]), jnp.array([0.0, 1.0]))
      >>> round(loss.item(), 4)  # log(1 + exp(-0.5))
      0.4741
    """
    chex.assert_rank(logits, 1)
    chex.assert_equal_shape([logits, targets])
    return -jnp.sum(targets * jax.nn.log_softmax(logits))


def cross_entropy_of_lengths(
    lengths: chex.Array, targets: chex.Array, *, epsilon: float = 1e-7
) -> jax.Array:
    r"""Compute the negative log-likelihood of the true class from lengths, for one example.

    .. math::
       L = -\sum_j T_j \log p_j, \quad p_j = \frac{a_j + \epsilon}{\sum_k (a_k + \epsilon)}

    Lengths lie in [0, 1), so that no component of their softmax could come close to one. They are
    divided by their sum instead. Where they sum to one, as the probabilities of Hahn, Pyeon & Kim
    (2019) do, the division changes nothing.

    Args:
      lengths: activations a of the class capsules, ``[J]``, not negative.
      targets: 1 for the class that is present and 0 for the others, ``[J]``.
      epsilon: keeps the loss finite where the true class has activation zero, and its derivative
        by a_t at most 1 / epsilon. If all activations are zero, all classes are equally probable.

    Returns:
      A scalar.

    Example:
      >>> loss = cross_entropy_of_lengths(jnp.array([0.25, 0.75]), jnp.array([0.0, 1.0]))
      >>> round(loss.item(), 4)  # -log 0.75
      0.2877
    """
    chex.assert_rank(lengths, 1)
    chex.assert_equal_shape([lengths, targets])
    likely = lengths + epsilon
    return -jnp.sum(targets * (jnp.log(likely) - jnp.log(jnp.sum(likely))))


def cross_entropy(
    scores: chex.Array, targets: chex.Array, *, logit: bool, epsilon: float = 1e-7
) -> jax.Array:
    """Compute one of the two cross-entropies. Deprecated: call the one that is meant.

    It is :func:`cross_entropy_of_logits` if ``logit``, otherwise :func:`cross_entropy_of_lengths`.
    """
    warnings.warn(
        "cross_entropy is deprecated: use cross_entropy_of_logits or cross_entropy_of_lengths",
        DeprecationWarning,
        stacklevel=2,
    )
    if logit:
        return cross_entropy_of_logits(scores, targets)
    return cross_entropy_of_lengths(scores, targets, epsilon=epsilon)


def reconstruction_loss(reconstruction: chex.Array, image: chex.Array) -> jax.Array:
    """Sum the squared differences over all pixels of one example.

    It is a sum, not a mean: the paper weights it with 0.0005, and a mean would make the term 784
    times too small on MNIST.

    Args:
      reconstruction: pixels in [0, 1], any shape.
      image: pixels in [0, 1], the same shape.

    Returns:
      A scalar.
    """
    chex.assert_equal_shape([reconstruction, image])
    return jnp.sum(jnp.square(reconstruction - image))
