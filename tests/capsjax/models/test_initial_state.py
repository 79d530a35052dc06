"""The state of whole networks before training, and whether they learn in a few steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capsjax import adam, create_model, init_state, make_train_step, preset
from capsjax.objectives import capsnet_loss
from capsjax.routing import ROUTINGS
from capsjax.train import make_gradient

# Mean length of the class capsules. In the paper's network for MNIST it is 0.28, where the squash
# is steepest. The length of primary capsules depends on the images (0.3 on black backgrounds, 0.65
# on white ones), and that of the class capsules with its square: hence the wide band. The slope of
# the squash is 0.77 of its largest value at the lower end and 0.16 at the upper one.
BAND = 0.08, 0.85
# Largest ratio of the gradient norms of two capsule layers: two orders of magnitude up to a hundred
# classes. With 1,000 it is 102 to 147: all capsules are longer than the loss wants absent ones to
# be, and shorter primary capsules would shorten all of them.
RATIO = {"up to a hundred classes": 100, "more": 160}
# Efficient-CapsNet has short class capsules: 0.06 for two classes, 2e-4 for a hundred. The slope of
# its squash is one at zero, so their gradients do not vanish. Matrix capsules start with the
# constants of their authors: activations are 0.03 to 0.15, and gradients of earlier layers 1e-4
# of that of the class capsules, whose matrices are small. Both are shown to learn instead.
STARTS_AS_PUBLISHED = ("efficient", "matrix")
BACKGROUNDS = {"black": (0, 1), "grey": (0.5, 0.4), "white": (1, -1)}


@functools.cache
def strokes(shape, background="black", count=4):
    """Returns made-up images: a bright, smooth arc in each square, the same in all channels."""
    height, width, channels = shape
    rng = np.random.default_rng(0)
    side = min(height, width)
    squares = [max(1, length // side) for length in (height, width)]
    y, x = np.mgrid[:height, :width] / side
    images = np.zeros((count, height, width))
    for n, row, column in np.ndindex(count, *squares):
        for angle in np.linspace(0, rng.uniform(2, 6), 40):
            cy = (row + 0.5) * height / side / squares[0] + 0.3 * np.sin(angle + n)
            wobble = np.cos(angle * rng.uniform(0.9, 1.1))
            cx = (column + 0.5) * width / side / squares[1] + 0.2 * wobble
            images[n] = np.maximum(images[n], np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 0.002))
    low, gain = BACKGROUNDS[background]
    return np.repeat(low + gain * images[..., None], channels, axis=3).astype(np.float32)


def initial_state(name, background="black", **changes):
    """Returns mean activations and norms of gradients, by layer."""
    config = preset(f"capsnet_{name}", **changes)
    traits = config.make_routing().traits
    model = create_model(config)
    loss = capsnet_loss(model, loss=traits.loss, logit=traits.scores_are_logits)
    images = strokes(config.image_shape, background)
    labels = np.arange(len(images)) % config.num_classes

    @jax.jit
    def measure(key):
        variables = model.init(key)
        grads, *_ = make_gradient(loss)(variables, images, labels, key)
        layers = model.apply(variables, images, method="capsules")
        own = {
            path: functools.reduce(lambda tree, name: tree[name], path.split("/"), grads)
            for path in layers
        }
        norms = {
            path: jnp.sqrt(sum(jnp.sum(x.astype(jnp.float32) ** 2) for x in jax.tree.leaves(tree)))
            for path, tree in own.items()
        }
        return {path: jnp.mean(x.activation) for path, x in layers.items()}, norms

    return jax.device_get(measure(jax.random.key(0, impl="rbg")))


def check(name, background="black", **changes):
    activations, gradients = initial_state(name, background, **changes)
    low = 0 if name in STARTS_AS_PUBLISHED else BAND[0]
    assert all(low < a < BAND[1] for a in activations.values()), activations
    if name != "matrix":
        check_ratio(gradients, changes.get("num_classes", 10))


def check_ratio(gradients, classes):
    most = RATIO["up to a hundred classes" if classes <= 100 else "more"]
    assert max(gradients.values()) < most * min(gradients.values()), gradients


SMALL = {"conv_channels": 16, "primary_types": 4, "decoder": None}


@pytest.mark.parametrize("classes, background", [(2, "white"), (100, "black")])
def test_few_and_many_classes(classes, background):
    check("small", background, num_classes=classes, image_shape=(21, 21, 1), **SMALL)


def test_a_stack_of_four_layers():
    check("deep", num_classes=3, decoder=None, conv_channels=16)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 3, 5, 10, 47, 100, 1000])
@pytest.mark.parametrize("background", BACKGROUNDS)
def test_classes(classes, background):
    check("small", background, num_classes=classes, decoder=None)


@pytest.mark.slow
@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize(
    "shape", [(17, 17, 1), (28, 56, 1), (64, 48, 3), (96, 96, 1), (32, 32, 2), (28, 28, 12)]
)
def test_images(shape, background):
    check("small", background, image_shape=shape, num_classes=3, decoder=None)


@pytest.mark.slow
@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("name", ["mnist", "small", "efficient", "deep", "matrix", "svhn"])
def test_presets(name, classes, background):
    check(name, background, num_classes=classes, decoder=None)


@pytest.mark.slow
@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_routings(routing, classes, dtype):
    activations, gradients = initial_state(
        "small", num_classes=classes, routing=routing, decoder=None, dtype=dtype
    )
    if routing == "self":  # shares that sum to one
        np.testing.assert_allclose(activations["classes"], 1 / classes, rtol=0.01)
    elif routing in ("inverted", "heinsen"):  # logits
        assert abs(activations["classes"]) < 2
    else:
        assert BAND[0] < activations["classes"] < BAND[1], activations
    check_ratio(gradients, classes)


@pytest.mark.slow
@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("classes", [2, 20])
def test_the_loss_falls_within_fifty_steps(routing, classes):
    check_learning(preset("capsnet_small", num_classes=classes, routing=routing, **SMALL))


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 100])
def test_efficient_capsnet_learns(classes):
    check_learning(preset("capsnet_efficient", num_classes=classes, decoder=None))


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 10])
def test_matrix_capsules_learn(classes):
    """With Gritzman's learning rate; the smaller of the two networks, as steps take seconds."""
    config = preset("capsnet_matrix_small", num_classes=classes)
    check_learning(config, count=20, learning_rate=3e-3)


def check_learning(config, count=40, learning_rate=1e-3):
    traits, model = config.make_routing().traits, create_model(config)
    loss = capsnet_loss(model, loss=traits.loss, logit=traits.scores_are_logits)
    optimizer = adam(learning_rate)
    images = strokes(config.image_shape, count=count)
    labels = np.arange(count) % config.num_classes
    state = init_state(model, optimizer, jax.random.key(0, impl="rbg"))
    step = jax.jit(make_train_step(loss, optimizer))
    losses = []
    for n in range(50):
        state, metrics = step(state, images, labels, jax.random.key(n, impl="rbg"))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < 0.9 * losses[0], losses[::7]
