"""The gradient and the training step.

A step is a pure function of a state, a batch and a key. The same function serves ``jax.jit`` and,
with ``axis_name``, ``jax.shard_map`` and ``jax.pmap``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from capsjax.functional import Model, join, split
from capsjax.objectives import LossFn
from capsjax.pieces import mean_over_pieces


class TrainState(NamedTuple):
    """Everything that a training step changes."""

    step: jax.Array  # int32 scalar, the number of steps done
    params: Any
    opt_state: optax.OptState
    stats: Any = ()  # running statistics, () for networks without any
    average: Any = ()  # of the parameters over the steps, () where none is kept

    @property
    def variables(self) -> Any:
        """What ``Model.apply`` takes: the parameters, with the statistics if there are any."""
        return join(self.params, self.stats)


def init_state(
    model: Model,
    optimizer: optax.GradientTransformation,
    key: chex.PRNGKey,
    *,
    average: bool = False,
) -> TrainState:
    """Make the state before the first step: initial variables and optimizer state.

    Args:
      model: the network.
      optimizer: an Optax transformation.
      key: of the initial variables.
      average: whether to keep averaged parameters, see ``ema`` of :func:`make_train_step`.
    """
    params, stats = split(model.init(key))
    copy = jax.tree.map(jnp.copy, params) if average else ()
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), stats, copy)


def make_gradient(loss: LossFn, *, axis_name: str | None = None, pieces: int = 1) -> Callable:
    """Make a function that computes the gradient of the mean loss of a batch.

    Args:
      loss: see :func:`capsjax.objectives.capsnet_loss`. It is called with ``train=True`` and
        ``axis_name`` if the network has statistics, and without these arguments otherwise.
      axis_name: name of the mapped axis over which the batch is divided into equal parts;
        gradients and metrics are averaged over it. What a loss draws with the same key is the same
        in each part. Under ``jax.shard_map`` this is correct only
        with ``check_vma=False``: otherwise JAX sums the gradients over the axis a second time.
      pieces: the number of equal pieces in which the batch is computed one after another, with the
        memory of one. Gradients and metrics are those of the whole batch. A loss that draws, as for
        dropout, must not contain ``jax.jit`` or ``jax.checkpoint`` of its own then: what they keep
        for further calls would not know of pieces.

    Returns:
      ``gradient(params, images, labels, key, progress=1) -> (grads, metrics)``, metrics scalars.
      With :class:`capsjax.Variables` in place of the parameters, it returns
      ``(grads, metrics, state)``: gradients of the parameters, and the new statistics. It raises
      ValueError for a batch without examples, for statistics of a batch in pieces, and if the batch
      cannot be divided.
    """
    full = _make_gradient(loss, axis_name, pieces)

    def gradient(variables, images, labels, key, progress=1.0):
        grads, metrics, stats = full(*split(variables), images, labels, key, progress)
        return (grads, metrics, stats) if stats else (grads, metrics)

    return gradient


def _make_gradient(loss, axis_name, pieces):
    """Like :func:`make_gradient`, with parameters and statistics as arguments and results."""

    def mean_loss(params, stats, *batch):
        mode = {"train": True, "axis_name": axis_name} if stats else {}
        losses, metrics, *after = loss(join(params, stats), *batch, **mode)
        return jnp.mean(losses), (jax.tree.map(jnp.mean, metrics), after[0] if stats else stats)

    def gradient(params, stats, images, labels, *rest):
        if any(0 in leaf.shape[:1] for leaf in jax.tree.leaves(images)):
            raise ValueError("the batch has no examples, so its mean loss is undefined")

        def of_piece(examples):
            return jax.grad(mean_loss, has_aux=True)(params, stats, *examples, *rest)

        if pieces == 1:
            grads, (metrics, stats) = of_piece((images, labels))
        elif stats:
            raise ValueError(
                "statistics of a batch, as of batch normalization, need it in one piece"
            )
        else:
            grads, (metrics, _) = mean_over_pieces(of_piece, (images, labels), pieces)
        if axis_name is not None:  # the statistics are already those of the whole batch
            grads, metrics = jax.lax.pmean((grads, metrics), axis_name)
        return grads, metrics, stats

    return gradient


def make_train_step(
    loss: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    axis_name: str | None = None,
    total_steps: int | None = None,
    ema: float = 0.0,
    pieces: int = 1,
) -> Callable:
    r"""Make a function that takes one step of gradient descent.

    With an ``ema`` it also averages the parameters (Polyak & Juditsky 1992) after step t, with the
    smaller decay at first that TensorFlow has:

    .. math:: \bar\theta_t = d_t \bar\theta_{t-1} + (1 - d_t) \theta_t, \quad
              d_t = \min(d, (1 + t) / (10 + t))

    Args:
      loss: see :func:`make_gradient`.
      optimizer: an Optax transformation.
      axis_name: see :func:`make_gradient`.
      total_steps: the number of steps of the training run, for losses that change with its
        progress. If None, such a loss has its final form in every step.
      ema: the decay d of averaged parameters, which the state must have; 0: there are none.
      pieces: see :func:`make_gradient`.

    Returns:
      ``step(state, images, labels, key) -> (state, metrics)``, to be wrapped in ``jax.jit``. It
      raises ValueError if an average is kept without an ``ema``, or the reverse. Labels
      that are no class are refused only outside of it; see
      :func:`capsjax.objectives.capsnet_loss`.
    """
    gradient = _make_gradient(loss, axis_name, pieces)

    def step(state, images, labels, key):
        if bool(jax.tree.leaves(state.average)) != bool(ema):
            raise ValueError(f"ema={ema}, and the state has {'no' if ema else 'an'} average")
        progress = state.step.astype(jnp.float32) / total_steps if total_steps else 1.0
        batch = (images, labels, key, progress)
        grads, metrics, stats = gradient(state.params, state.stats, *batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.average
        if ema:
            t = (state.step + 1).astype(jnp.float32)
            share = 1 - jnp.minimum(ema, (1 + t) / (10 + t))
            mixed = optax.incremental_update(params, average, share)
            # The average of equal numbers is that number, without rounding: frozen ones stay.
            average = jax.tree.map(
                lambda p, a, m: jnp.where(p == a, p, m.astype(p.dtype)), params, average, mixed
            )
        return TrainState(state.step + 1, params, opt_state, stats, average), metrics

    return step


def make_eval_step(loss: LossFn) -> Callable:
    """Make a function that computes the metrics of every example, without training.

    Args:
      loss: see :func:`capsjax.objectives.capsnet_loss`.

    Returns:
      ``evaluate(variables, images, labels) -> metrics``, every metric ``[B]``, so that the rows
      that pad a last batch can be cut off. ``variables`` are the parameters, or for a network
      with statistics :class:`capsjax.Variables`, see ``TrainState.variables``.
    """

    def evaluate(variables, images, labels):
        return loss(variables, images, labels)[1]

    return evaluate
