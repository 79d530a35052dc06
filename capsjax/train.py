"""Training: losses of a whole network, the optimiser, one step.

A step is a pure function of a state, a batch and a key. The same body serves jit, and,
with ``axis_name``, shard_map and pmap.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from capsjax.functional import Model
from capsjax.losses import (
    LOSSES,
    cross_entropy,
    label_mask,
    margin_loss,
    reconstruction_loss,
    spread_loss,
    spread_margin,
)
from capsjax.routing import check_choice

Metrics = dict[str, jax.Array]
LossFn = Callable[..., tuple[jax.Array, Metrics]]

# Every difference between the paper's text and the authors' code that changes training,
# as switches of the model (first block) and of the training (second block).
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {
        "init": "lecun",
        "routing_bias": False,
        "primary_scale": 1.0,
        "margin_weight": 1.0,
        "learning_rate_floor": 0.0,
    },
    "official": {
        "init": "official",
        "routing_bias": True,
        "primary_scale": 1 / 32,
        "margin_weight": 1 / 20,
        "learning_rate_floor": 1e-6,
    },
}


class TrainState(NamedTuple):
    """All that training changes."""

    step: jax.Array  # int32 scalar, steps done
    params: Any
    opt_state: optax.OptState


def adam(
    learning_rate: float = 1e-3,
    decay_rate: float = 0.96,
    decay_steps: int = 2000,
    floor: float = 0.0,
) -> optax.GradientTransformation:
    r"""Adam whose rate after t steps is :math:`\max(\eta\, r^{t/T}, \eta_{min})`.

    Args:
      learning_rate: the first rate, eta. decay_rate: r. decay_steps: T, in steps.
      floor: smallest rate.
    """

    def schedule(step):
        # optax.exponential_decay takes the floor for a ceiling when decay_rate is one.
        return jnp.maximum(learning_rate * decay_rate ** (step / decay_steps), floor)

    return optax.adam(schedule)


def capsnet_loss(
    model: Model,
    *,
    loss: str = "margin",
    logit: bool = False,
    margin_weight: float = 1.0,
    reconstruction_weight: float = 0.0005,
) -> LossFn:
    r"""Loss of CapsNet: :math:`\alpha L_{margin} + \beta \sum (image - reconstruction)^2`.

    Without a decoder the second term is absent. The decoder sees the capsule of the label.

    Args:
      model: the network.
      loss: of the class scores, a name of :data:`capsjax.losses.LOSSES`. The margin of the
        spread loss grows with the progress of training.
      logit: the scores are logits.
      margin_weight: alpha, of whichever loss. reconstruction_weight: beta.

    Returns:
      ``loss(params, images, labels, key=None, progress=1) -> (losses [B], metrics)``; every
      metric is ``[B]``: loss, accuracy, the loss of the scores (margin_loss, spread_loss or
      cross_entropy_loss) and reconstruction_loss, both unweighted. ``progress`` is the share of
      the training that is done.

    Raises:
      ValueError: unknown loss, or one that logits do not fit.
    """
    check_choice("loss", loss, LOSSES)
    if logit and loss != "cross_entropy":
        raise ValueError(f"loss {loss!r} needs scores in [0, 1], not logits: use cross_entropy")

    def of_scores(scores, targets, progress):
        if loss == "spread":
            return spread_loss(scores, targets, spread_margin(progress))
        if loss == "cross_entropy":
            return cross_entropy(scores, targets, logit=logit)
        return margin_loss(scores, targets)

    def whole(params, images, labels, key=None, progress=1.0):
        prediction = model.apply(params, images, labels, key)
        targets = label_mask(labels, prediction.scores.shape[1])
        margin = jax.vmap(of_scores, (0, 0, None))(prediction.scores, targets, progress)
        metrics = {f"{loss}_loss": margin}
        total = margin_weight * margin
        if prediction.reconstruction is not None:
            error = jax.vmap(reconstruction_loss)(prediction.reconstruction, images)
            metrics["reconstruction_loss"] = error
            total += reconstruction_weight * error
        return total, metrics | {"loss": total, "accuracy": _correct(prediction.scores, labels)}

    return whole


def cross_entropy_loss(model: Model) -> LossFn:
    """Softmax cross-entropy on logits, for the convolutional baselines.

    Returns:
      As :func:`capsnet_loss`, with the metrics loss and accuracy.
    """

    def loss(params, images, labels, key=None, progress=1.0):
        logits = model.apply(params, images, labels, key).scores
        total = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return total, {"loss": total, "accuracy": _correct(logits, labels)}

    return loss


def _correct(scores, labels):
    return (jnp.argmax(scores, axis=1) == labels).astype(jnp.float32)


def init_state(
    model: Model, optimizer: optax.GradientTransformation, key: chex.PRNGKey
) -> TrainState:
    """State before the first step."""
    params = model.init(key)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def make_gradient(loss: LossFn, *, axis_name: str | None = None) -> Callable:
    """Gradient of the mean loss of a batch.

    Args:
      loss: see :func:`capsnet_loss`.
      axis_name: the mapped axis over which the batch is divided in equal parts; gradients
        and metrics are then averaged over it. Under ``shard_map`` this is right only with
        ``check_vma=False`` (otherwise JAX sums the gradients once more by itself).

    Returns:
      ``gradient(params, images, labels, key, progress=1) -> (grads, metrics)``, metrics scalars.
    """

    def mean_loss(params, images, labels, key, progress):
        losses, metrics = loss(params, images, labels, key, progress)
        return jnp.mean(losses), jax.tree.map(jnp.mean, metrics)

    def gradient(params, images, labels, key, progress=1.0):
        grads, metrics = jax.grad(mean_loss, has_aux=True)(params, images, labels, key, progress)
        if axis_name is not None:
            grads, metrics = jax.lax.pmean((grads, metrics), axis_name)
        return grads, metrics

    return gradient


def make_train_step(
    loss: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    axis_name: str | None = None,
    total_steps: int | None = None,
) -> Callable:
    """One step of gradient descent.

    Args:
      loss, axis_name: see :func:`make_gradient`. optimizer: from Optax.
      total_steps: of the whole training, for losses that change with its progress; None: they
        stay as they are at the end.

    Returns:
      ``step(state, images, labels, key) -> (state, metrics)``, to be wrapped in jit.
    """
    gradient = make_gradient(loss, axis_name=axis_name)

    def step(state, images, labels, key):
        progress = state.step.astype(jnp.float32) / total_steps if total_steps else 1.0
        grads, metrics = gradient(state.params, images, labels, key, progress)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), metrics

    return step


def make_eval_step(loss: LossFn) -> Callable:
    """Per-example metrics without training.

    Returns:
      ``evaluate(params, images, labels) -> metrics``, every metric ``[B]``, so that a
      padded last batch can be cut instead of dropped.
    """

    def evaluate(params, images, labels):
        return loss(params, images, labels)[1]

    return evaluate
