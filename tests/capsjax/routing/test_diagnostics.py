"""Diagnostics against loops over examples, passes and capsules."""

import functools

import jax
import numpy as np
import pytest
import reference

from capsjax.routing import make_routing, route
from capsjax.routing.base import Sizes, Trace
from capsjax.routing.diagnostics import Diagnostics, coupling_entropy, diagnose, vote_agreement

measure = jax.jit(diagnose)
SHAPES = [(3, 4, 5, 6, 2), (2, 1, 4, 3, 3), (1, 2, 1, 2, 1), (2, 3, 3, 1, 4)]  # B, R, I, J, D


def random_trace(B, R, I, J, D, seed=0):
    """A trace of random numbers and votes; couplings of a child sum to anything."""
    rng = np.random.default_rng(seed)
    logits, coupling = rng.normal(size=(B, R, I, J)), rng.uniform(0, 2, (B, R, I, J))
    pose, activation = rng.normal(size=(B, R, J, D)), rng.uniform(0.2, 0.9, (B, R, J))
    return Trace(logits, coupling, pose, activation), rng.normal(size=(B, I, J, D))


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def entropy(row):
    total = sum(row)
    if len(row) == 1:
        return 0.0
    p = [c / total if total else 1 / len(row) for c in row]
    return -sum(x * np.log(x) for x in p if x > 0) / np.log(len(row))


def cosine(x, y):
    lengths = reference.norm(x) * reference.norm(y)
    return sum(x * y) / lengths if lengths else 0.0


def weighted(weights, values):
    total = sum(weights)
    return sum(w * x for w, x in zip(weights, values, strict=True)) / total if total else 0.0


def expected(trace, votes, threshold=0.5):
    b, c, v, a = trace
    B, R, I, J = b.shape
    spreads, active = np.zeros((I, J)), np.zeros((J, B))
    for i, j in np.ndindex(I, J):
        m = mean(c[n, -1, i, j] for n in range(B))
        spreads[i, j] = np.sqrt(mean((c[n, -1, i, j] - m) ** 2 for n in range(B)))
    for j, n in np.ndindex(J, B):
        active[j, n] = a[n, -1, j] > threshold
    return Diagnostics(
        [mean(entropy(c[n, t, i]) for n, i in np.ndindex(B, I)) for t in range(R)],
        [
            mean(abs(b[n, t, i, j] - b[n, t - 1, i, j]) for n, i, j in np.ndindex(B, I, J))
            for t in range(1, R)
        ],
        [
            mean(
                weighted(c[n, t, :, j], [cosine(votes[n, i, j], v[n, t, j]) for i in range(I)])
                for n, j in np.ndindex(B, J)
            )
            for t in range(R)
        ],
        mean(spreads.flat),
        [[mean(c[n, -1, i, j] for n in range(B)) for j in range(J)] for i in range(I)],
        [mean(active[j]) for j in range(J)],
        sum(not any(active[j]) for j in range(J)),
        sum(all(active[j]) for j in range(J)),
    )


def compare(got, trace, votes, **options):
    for name, one, other in zip(Diagnostics._fields, got, expected(trace, votes, **options)):
        assert np.shape(one) == np.shape(other), name
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14, err_msg=name)


@pytest.mark.parametrize("shape", SHAPES)
def test_of_random_numbers(x64, shape):
    trace, votes = random_trace(*shape)
    compare(measure(trace, votes), trace, votes)


@pytest.mark.parametrize("name", ["dynamic", "leaky", "sigmoid", "em", "inverted"])
def test_of_routing(x64, name):
    B, sizes, rng = 3, Sizes(I=6, J=4, D=4, K=3), np.random.default_rng(1)
    I, J, D, K = sizes
    routing = make_routing(name, iterations=3)
    u, W = rng.normal(size=(B, I, K)), 0.5 * rng.normal(size=(I, J, D, K))
    params = routing.init_params(jax.random.key(0), sizes)
    params = {key: np.asarray(value, np.float64) for key, value in params.items()}
    out = jax.jit(lambda: route(routing, params, u, W, trace=True))()
    votes = np.einsum("ijdk,bik->bijd", W, u)
    threshold = 0.0 if routing.traits.scores_are_logits else 0.5
    trace = Trace(*map(np.asarray, out.aux))
    compare(measure(out.aux, votes, threshold=threshold), trace, votes, threshold=threshold)
    np.testing.assert_array_equal(trace.coupling[:, -1], out.coupling)


def test_zeros_are_nothing_special(x64):
    trace, votes = random_trace(2, 3, 4, 3, 2)
    trace.coupling[0, 1, 2] = 0  # a child without parents
    trace.coupling[1, 2, :, 1] = 0  # a parent without children
    trace.coupling[:, 0, :, 2] = 0  # zero couplings among others
    trace.pose[0, 1, 0] = 0
    trace.pose[1, :, 1] = 0
    votes[0, 1] = 0
    compare(measure(trace, votes), trace, votes)


def test_entropy_is_between_decided_and_even(x64):
    rows = np.array([[0.25] * 4, [3.0] * 4, [0] * 4, [0, 0, 2, 0], [1, 1, 0, 0], [1e-300] * 4])
    entropy = jax.jit(coupling_entropy)
    np.testing.assert_allclose(entropy(rows), [1, 1, 1, 0, 0.5, 1], rtol=1e-12)
    np.testing.assert_array_equal(entropy(rows[:, :1]), 0)
    random = np.random.default_rng(0).exponential(size=(100, 7)) ** 3
    assert (0 < entropy(random)).all() and (entropy(random) < 1).all()


def test_agreement_is_a_cosine_of_votes_that_count(x64):
    pose = np.array([[[[3.0, 4.0]]]])
    votes = np.array([[[[0.3, 0.4]], [[-6.0, -8.0]], [[4.0, -3.0]]]])

    def agreement(*c):
        coupling = np.reshape(c, (1, 1, 3, 1))
        return vote_agreement(Trace(coupling, coupling, pose, pose[..., 0]), votes).item()

    for c, known in (((1, 0, 0), 1), ((0, 1, 0), -1), ((0, 0, 5), 0), ((3, 1, 0), 0.5)):
        np.testing.assert_allclose(agreement(*map(float, c)), known, atol=1e-12)


def test_without_votes_there_is_no_agreement(x64):
    trace, votes = random_trace(*SHAPES[0])
    got, full = measure(trace), measure(trace, votes)
    assert got.agreement is None
    jax.tree.map(np.testing.assert_array_equal, got, full._replace(agreement=None))


def test_parents_are_active_above_the_threshold_of_the_last_pass():
    trace, _ = random_trace(4, 2, 3, 5, 2)
    trace.activation[:, 0] = [[0.9, 0.1, 0.9, 0.1, 0.9]]
    trace.activation[:, 1] = [[0.9, 0.1, 0.5, 0.6, 0.2]] * 3 + [[0.8, 0.2, 0.5, 0.1, 0.3]]
    got = measure(trace)
    np.testing.assert_array_equal(got.activity, [1, 0, 0, 0.75, 0])
    assert (got.dead, got.always_on) == (3, 1)
    got = measure(trace, threshold=0.0)
    np.testing.assert_array_equal(got.activity, 1)
    assert (got.dead, got.always_on) == (0, 5)


def test_all_and_none_are_counted_in_batches_of_any_size():
    """A mean of ones need not be one."""
    for B in (3, 49, 107, 1000):
        trace = random_trace(B, 1, 1, 3, 1)[0]
        trace.activation[:] = [0.9, 0.1, 0.9]
        trace.activation[0, 0, 2] = 0.1
        got = measure(jax.tree.map(np.float32, trace))
        assert (got.dead, got.always_on) == (1, 1)


def test_routing_that_ignores_its_input_does_not_spread_over_examples():
    rng = np.random.default_rng(0)
    u, W = rng.normal(size=(5, 6, 4)), rng.normal(size=(6, 3, 2, 4))  # B=5, I=6, K=4, J=3, D=2
    spread = {}
    for name in ("uniform", "dynamic"):
        routed = jax.jit(functools.partial(route, make_routing(name), {}, trace=True))
        spread[name] = measure(routed(np.float32(u), np.float32(W)).aux).spread_over_examples
    assert spread["uniform"] < 1e-6 < 1e-2 < spread["dynamic"]


def test_wrong_shapes_are_rejected():
    trace, votes = random_trace(2, 3, 4, 5, 2)
    one = jax.tree.map(lambda x: x[0], trace)
    for wrong, given in [
        (one, None),
        (trace._replace(activation=trace.activation[:, :1]), None),
        (trace._replace(logits=trace.logits[..., :1]), None),
        (trace, votes[..., :1]),
        (trace, votes[:1]),
        (trace, votes[0]),
        (trace._replace(pose=trace.pose[:, :1]), votes),
    ]:
        with pytest.raises(AssertionError):
            diagnose(wrong, given)
