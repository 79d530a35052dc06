"""Votes of input capsules: every kind against NumPy loops, half precision, shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import reference_routing as loops

from capsjax.votes import VOTES

LOOPS = {
    "full": reference.prediction_vectors,
    "shared": loops.shared_votes,
    "conv": loops.conv_votes,
    "matrix": loops.matrix_votes,
    "conv_matrix": lambda u, W: loops.matrix_votes(u, W[np.arange(len(u)) % len(W)]),
    "elementwise": loops.elementwise_votes,
}
# (I, J, D, K, T): ordinary ones, one type, as many types as capsules, one of everything.
SIZES = [(6, 3, 4, 4, 2), (6, 2, 9, 9, 1), (4, 2, 4, 4, 4), (1, 1, 1, 1, 1)]
OBLONG = [(6, 3, 5, 2, 3), (2, 1, 1, 7, 2)]  # D is not K
CASES = [
    *((name, sizes) for name in VOTES for sizes in SIZES),
    *((name, sizes) for name in ("full", "shared", "conv") for sizes in OBLONG),
]


def data(name, sizes):
    I, _, _, K, _ = sizes
    rng = np.random.default_rng(0)
    return rng.normal(size=(I, K)), rng.normal(size=VOTES[name].shape(*sizes))


def test_every_kind_has_a_loop():
    assert LOOPS.keys() == VOTES.keys()
    assert all(votes.name == name for name, votes in VOTES.items())


@pytest.mark.parametrize("name, sizes", CASES)
def test_values_and_gradients(x64, name, sizes):
    u, W = data(name, sizes)
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(sizes[0], sizes[1], sizes[2]))

    def loss(u, W):
        votes = VOTES[name].function(u, W)
        return jnp.sum(weight * votes), votes

    (du, dW), votes = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(u, W)
    exact = LOOPS[name](u, W)
    assert votes.shape == exact.shape == weight.shape
    np.testing.assert_allclose(votes, exact, rtol=1e-12, atol=1e-13)
    for got, x, function in (
        (du, u, lambda u: np.sum(weight * LOOPS[name](u, W))),
        (dW, W, lambda W: np.sum(weight * LOOPS[name](u, W))),
    ):
        direction = rng.normal(size=x.shape)
        derivative = reference.derivative(function, x, direction)
        np.testing.assert_allclose(np.sum(got * direction), derivative, rtol=1e-11)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", VOTES)
def test_half_precision_is_accumulated_in_float32(name, dtype):
    u, W = (jnp.asarray(x, dtype) for x in data(name, (4, 2, 256, 256, 2)))
    votes, pull = jax.vjp(jax.jit(VOTES[name].function), u, W)
    assert votes.dtype == jnp.float32
    du, dW = pull(jnp.ones_like(votes))
    assert du.dtype == dW.dtype == dtype
    wide = [np.asarray(x).astype(np.float32) for x in (u, W)]
    # Products of half-precision numbers are exact in float32, not so their sums.
    tolerance = 0 if name == "elementwise" else 1e-5
    exact = np.asarray(VOTES[name].function(*wide))
    assert np.abs(votes - exact).max() <= tolerance * np.abs(exact).max()
    rounded = np.asarray(votes.astype(dtype)).astype(np.float32)  # what the test must tell apart
    assert np.abs(rounded - exact).max() > 1e-5 * np.abs(exact).max()


# Shapes


@pytest.mark.parametrize(
    "name, shape",
    [
        ("full", (12, 10, 16, 16)),
        ("shared", (10, 16, 16)),
        ("conv", (3, 10, 16, 16)),
        ("matrix", (12, 10, 4, 4)),
        ("conv_matrix", (3, 10, 4, 4)),
        ("elementwise", (12, 10, 16)),
    ],
)
def test_shape_of_the_parameters(name, shape):
    votes = VOTES[name]
    assert votes.shape(12, 10, 16, 16, 3) == shape
    assert votes.per_input_capsule == (shape[0] == 12)
    assert votes.by_types == (shape[0] == 3)
    assert votes.unit(np.zeros(shape)) == (3 if votes.by_types else 1)


@pytest.mark.parametrize("name", ["full", "shared", "conv"])
def test_pose_sizes_may_differ(name):
    assert VOTES[name].shape(12, 10, 16, 8, 3)[-2:] == (16, 8)


@pytest.mark.parametrize(
    "name, D, K, message",
    [
        ("matrix", 16, 9, "votes 'matrix' keep the pose size: 9 can't become 16"),
        ("matrix", 8, 8, "need poses of a square number of components, not 8"),
        ("conv_matrix", 9, 16, "keep the pose size: 16 can't become 9"),
        ("conv_matrix", 5, 5, "need poses of a square number of components, not 5"),
        ("elementwise", 16, 8, "votes 'elementwise' keep the pose size: 8 can't become 16"),
    ],
)
def test_impossible_pose_sizes(name, D, K, message):
    with pytest.raises(ValueError, match=message):
        VOTES[name].shape(12, 10, D, K, 3)


WRONG = [
    *((name, (4, 4), (2,)) for name in VOTES),  # W of no kind
    *((name, (4,), (2, 2, 2, 2)) for name in VOTES),  # u of no batch of capsules
    ("full", (5, 4), (4, 3, 4, 4)),
    ("full", (4, 3), (4, 3, 4, 4)),
    ("shared", (4, 3), (3, 4, 4)),
    ("shared", (4, 1), (3, 4, 4)),
    ("conv", (5, 4), (2, 3, 4, 4)),
    ("conv", (4, 3), (2, 3, 4, 4)),
    ("matrix", (4, 5), (4, 3, 2, 2)),
    ("matrix", (5, 4), (4, 3, 2, 2)),
    ("matrix", (1, 16), (4, 3, 2, 2)),
    ("matrix", (4, 4), (4, 3, 2, 3)),
    ("conv_matrix", (5, 4), (2, 3, 2, 2)),
    ("conv_matrix", (4, 9), (2, 3, 2, 2)),
    ("elementwise", (4, 3), (4, 3, 4)),
    ("elementwise", (4, 1), (4, 3, 4)),
    ("elementwise", (1, 4), (4, 3, 4)),
]


@pytest.mark.parametrize("name, u, W", WRONG)
def test_wrong_sizes(name, u, W):
    with pytest.raises((AssertionError, TypeError, ValueError)):
        jax.eval_shape(VOTES[name].function, jnp.zeros(u), jnp.zeros(W))
