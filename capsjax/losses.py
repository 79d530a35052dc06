"""Losses and masks. Every function is written for one example; batch with vmap."""

import chex
import jax
import jax.numpy as jnp

LOSSES = ("margin", "spread", "cross_entropy")


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


def spread_loss(scores: chex.Array, targets: chex.Array, margin: chex.Numeric) -> jax.Array:
    r"""Spread loss for one example: the true class has to lead every other one by the margin.

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
    r"""Margin of the spread loss after a part of the training.

    .. math:: m = 0.2 + 0.7 \, p

    Hinton, Sabour & Frosst (2018) raise the margin from 0.2 to 0.9 during training, linearly,
    so that no capsules die at its beginning.

    Args:
      progress: p, steps done divided by all steps; below 0 it counts as 0, above 1 as 1.

    Returns:
      A scalar.

    Example:
      >>> [round(spread_margin(p).item(), 4) for p in (0, 0.5, 1, 2)]
      [0.2, 0.55, 0.9, 0.9]
    """
    return 0.2 + 0.7 * jnp.clip(progress, 0, 1)


def cross_entropy(
    scores: chex.Array, targets: chex.Array, *, logit: bool, epsilon: float = 1e-7
) -> jax.Array:
    r"""Negative log-likelihood of the true class, for one example.

    .. math::
       L = -\sum_j T_j \log p_j, \quad p = \mathrm{softmax}(a) \text{ or }
       p_j = \frac{a_j + \epsilon}{\sum_k (a_k + \epsilon)}

    The first for scores that are logits (Tsai et al. 2020, Heinsen 2022). The second for lengths
    and probabilities, whose softmax could not come near one; where they sum to one, as those of
    Hahn, Pyeon & Kim (2019) do, it is the negative log-likelihood.

    Args:
      scores: activations a of the class capsules, ``[J]``, of any sign if logits, else not below
        zero.
      targets: 1 for the class that is present and 0 for the others, ``[J]``.
      logit: whether the scores are logits.
      epsilon: keeps the loss of a class with activation zero finite, and with it the gradient,
        by a_t at most 1 / epsilon. All activations zero: all classes equally probable.

    Returns:
      A scalar.

    Example:
      >>> scores, targets = jnp.array([0.25, 0.75]), jnp.array([0.0, 1.0])
      >>> round(cross_entropy(scores, targets, logit=False).item(), 4)  # -log 0.75
      0.2877
      >>> round(cross_entropy(scores, targets, logit=True).item(), 4)  # log(1 + exp(-0.5))
      0.4741
    """
    chex.assert_rank(scores, 1)
    chex.assert_equal_shape([scores, targets])
    if logit:
        return -jnp.sum(targets * jax.nn.log_softmax(scores))
    likely = scores + epsilon
    return -jnp.sum(targets * (jnp.log(likely) - jnp.log(jnp.sum(likely))))


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
