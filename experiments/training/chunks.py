"""Many steps of training in one compiled call."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from capsjax import train
from experiments.data import batching
from experiments.tasks.base import Setup
from experiments.training import pieces, shards
from experiments.training.devices import parallelize
from experiments.training.setup import first_state, total_steps


def make_chunk(setup: Setup) -> Callable:
    """Returns many steps in one call: ``chunk(state, source, orders, key, count)``.

    The chunk returns the state after ``count`` steps (a traced number, so that one compiled
    program serves chunks of any length up to ``log_every``) and the sums of the metrics.
    """
    body, state = functools.partial(chunk_body, setup), None
    if shards.divides_state(setup):
        shapes = jax.eval_shape(functools.partial(first_state, setup), jax.random.key(0))
        # Without them the compiler would choose, and might divide what is to be whole.
        state = shards.state_shardings(setup, shapes)
    parts = setup.config.capsule_shards
    return parallelize(body, setup.config.parallel, setup.devices, state, parts)


def chunk_body(setup: Setup, axis_name: str | None, parts: int, constrain: Callable) -> Callable:
    """Returns the chunk of :func:`make_chunk` on one device.

    Args:
      setup: of the run.
      axis_name, parts, constrain: see :func:`experiments.training.devices.parallelize`.
    """
    config = setup.config
    step = train.make_train_step(
        setup.loss,
        setup.optimizer,
        axis_name=axis_name,
        total_steps=total_steps(setup),
        ema=config.ema,
        pieces=pieces.number(config),
    )

    keep = shards.keep_divided(setup)

    def body(state, source, orders, key, count, which):
        @jax.jit  # traced once, although the shapes of its results are asked for first
        def one(state):
            images, labels, dropout_key = batching.make_batch(
                setup.pipeline.example,
                source,
                orders,
                key,
                state.step,
                batch_size=config.batch_size,
                part=(which, parts),
            )
            state, metrics = step(state, *constrain((images, labels)), dropout_key)
            return keep(state), metrics

        sums = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(one, state)[1])

        def several(_, carry):
            state, sums = carry
            state, metrics = one(state)
            return state, jax.tree.map(jnp.add, sums, metrics)

        return jax.lax.fori_loop(0, count, several, (state, sums))

    return body
