"""Masks that choose which class capsules the decoder sees, written for one example."""

import chex
import jax
import jax.numpy as jnp
import numpy as np


def check_labels(labels: chex.Array, images: chex.Array, num_classes: int | None = None) -> None:
    """Refuse labels that are no class, or not one for each image.

    Args:
      labels: ``[B]``. Inside ``jax.jit`` their values are unknown, and not checked.
      images: ``[B, ...]``.
      num_classes: number J of classes, or None to check the shape and the type alone.

    Raises:
      ValueError: they are not integers ``[B]``, or not in 0..J-1.
    """
    shape, dtype = (getattr(labels, name, None) for name in ("shape", "dtype"))
    if shape is None or len(shape) != 1 or not jnp.issubdtype(dtype, jnp.integer):
        kind = type(labels).__name__ if shape is None else f"{dtype} of shape {list(shape)}"
        raise ValueError(f"labels are integers [B], one class for each image, not {kind}")
    if shape[0] != len(images):
        raise ValueError(f"there are {shape[0]} labels for {len(images)} images")
    if num_classes is None or isinstance(labels, jax.core.Tracer):
        return
    wrong = [label for label in np.asarray(labels).tolist() if not 0 <= label < num_classes]
    if wrong:
        raise ValueError(
            f"label {wrong[0]} is no class: {num_classes} classes are 0 to {num_classes - 1}"
        )


def label_mask(label: chex.Array, num_classes: int) -> jax.Array:
    """Make the mask that keeps the capsule of the true class: the decoder's input in training.

    Args:
      label: class index, a scalar; of further axes, each element is a label of its own.
      num_classes: number J of classes.

    Returns:
      ``[J]`` (after the axes of the label), float32.
    """
    # A narrow type of integers would wrap the classes, too.
    return jax.nn.one_hot(jnp.asarray(label).astype(jnp.int32), num_classes, dtype=jnp.float32)


def argmax_mask(lengths: chex.Array) -> jax.Array:
    """Make the mask that keeps the longest capsule: the decoder's input where no label is known.

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
      pose: poses of the class capsules, ``[J, D]``.
      mask: 1 for each capsule to keep and 0 for the others, ``[J]``.

    Returns:
      ``[J, D]``.

    Raises:
      AssertionError: the ranks or the sizes J do not agree.
    """
    chex.assert_rank([pose, mask], [2, 1])
    chex.assert_equal_shape_prefix([pose, mask], 1)
    return pose * mask[:, None]
