"""Layers of capsules stacked with their default settings learn from their first step on."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import load_digits

from capsjax import PrimaryCapsules, RoutedCapsules, from_module, margin_loss

CAPSULES, POSE, STEPS, BATCH = 32, 16, 66, 64


class Stack(nnx.Module):
    """Primary capsules, and a number of routed layers of which the last is the class capsules."""

    def __init__(self, layers, rngs):
        # 9x9 kernels with a stride of 4 see 28x28 pixels at 5x5 positions: 100 capsules of 8.
        self.primary = PrimaryCapsules(1, 4, 8, 9, 4, rngs=rngs)
        sizes = [(5 * 5 * 4, 8), *[(CAPSULES, POSE)] * (layers - 1), (10, POSE)]
        self.layers = nnx.List(
            RoutedCapsules(I, K, J, D, rngs=rngs) for (I, K), (J, D) in zip(sizes[:-1], sizes[1:])
        )

    def __call__(self, x):
        capsules = self.primary(x)
        for layer in self.layers:
            capsules = layer(capsules)
        return capsules.activation


@pytest.mark.slow
@pytest.mark.parametrize("layers", [2, 3, 4])
def test_stacks_learn_the_digits(layers):
    digits = load_digits()
    model = from_module(lambda rngs: Stack(layers, rngs))
    params, apply = model.init(jax.random.key(0)), jax.jit(model.apply)
    optimizer = optax.adam(1e-3)

    def loss(params, images, labels):
        lengths = apply(params, images)
        return jax.vmap(margin_loss)(lengths, jax.nn.one_hot(labels, 10)).mean()

    @jax.jit
    def step(params, state, images, labels):
        grads = jax.grad(loss)(params, images, labels)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, optax.tree.norm(grads)

    state = optimizer.init(params)
    images = np.float32(digits.train_images) / 255
    order = np.random.default_rng(0).permutation(len(images))
    for n in range(STEPS):
        rows = order[np.arange(n * BATCH, (n + 1) * BATCH) % len(order)]
        params, state, norm = step(params, state, images[rows], digits.train_labels[rows])
        if n == 0:
            assert norm > 1e-2
    found = apply(params, np.float32(digits.test_images) / 255).argmax(-1)
    assert np.mean(found == digits.test_labels) > 0.8
