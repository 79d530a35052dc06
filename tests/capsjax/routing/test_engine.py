"""Routing without votes: every implementation against routing with votes in float64.

The oracle is autodiff of materialized votes (``naive``), in float64, which is itself compared with
NumPy loops here and in test_dynamic.py.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.sharding import PartitionSpec

from capsjax.routing import GRADIENTS, PassInputs, dynamic, route, stream
from kernels.api import pass_kernels
from kernels.problems import PROBLEMS, SMALL

NORMALIZERS = ("softmax", "leaky")
IMPLEMENTATIONS = {
    "stream": "stream",
    "tpu": pass_kernels("tpu", interpret=True),
    "gpu": pass_kernels("gpu", interpret=True),
}
TOLERANCES = {"float32": 2e-5, "bfloat16": 2e-2, "float16": 3e-3}


def problem_data(name, dtype="float32", bias=True):
    """Inputs of a problem and the weights of a loss; the numbers that dtype can hold."""
    problem = PROBLEMS[name]
    rng = np.random.default_rng(0)
    inputs = {k: np.asarray(x.astype("float32")) for k, x in problem.arrays(dtype).items()}
    if bias:
        inputs["bias"] = 0.1 * rng.normal(size=(problem.J, problem.D)).astype(np.float32)
    return inputs, rng.normal(size=(problem.B, problem.J, problem.D)).astype(np.float32)


def value_and_gradients(name, inputs, weight, iterations=3, normalizer=None, **options):
    """Pose, and gradients by all inputs of sum(weight * pose) + sum(activation^3)."""
    problem = PROBLEMS[name]
    if normalizer:
        problem = dataclasses.replace(problem, normalizer=normalizer)

    def loss(inputs):
        out = problem.route(inputs, iterations, **options)
        return jnp.sum(weight.astype(out.pose.dtype) * out.pose) + jnp.sum(out.activation**3), out

    gradients, out = jax.jit(jax.grad(loss, has_aux=True))(inputs)
    return {"pose": out.pose, "activation": out.activation} | gradients


@functools.cache
def exact(name, dtype, **options):
    inputs, weight = problem_data(name, dtype)
    with jax.enable_x64():
        wide = {key: jnp.asarray(x, jnp.float64) for key, x in inputs.items()}
        out = value_and_gradients(name, wide, weight, implementation="naive", **options)
        return {key: np.asarray(x) for key, x in out.items()}


def worst_error(got, expected):
    """Largest difference of each tensor, relative to its largest element."""
    assert got.keys() == expected.keys()
    errors = []
    for key, x in expected.items():
        assert got[key].shape == x.shape, key
        difference = np.abs(np.asarray(got[key], np.float64) - x).max()
        errors.append(difference / max(np.abs(x).max(), 1e-30) if difference else 0.0)
    return max(errors)


def check(name, implementation, dtype="float32", **options):
    options = {"iterations": 3} | options
    inputs, weight = problem_data(name, dtype)
    inputs = {k: jnp.asarray(x, dtype if k in "uW" else "float32") for k, x in inputs.items()}
    got = value_and_gradients(
        name, inputs, weight, implementation=IMPLEMENTATIONS[implementation], **options
    )
    assert got["pose"].dtype == jnp.float32 and got["u"].dtype == got["W"].dtype == dtype
    assert worst_error(got, exact(name, dtype, **options)) <= TOLERANCES[dtype]


# The oracle


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_materialized_votes_are_the_paper(x64, normalizer):
    inputs, _ = problem_data("ragged")
    inputs = {key: np.asarray(x, np.float64) for key, x in inputs.items()}
    problem = dataclasses.replace(PROBLEMS["ragged"], normalizer=normalizer)
    out = jax.jit(functools.partial(problem.route, implementation="naive"))(inputs)
    coupling = reference.over_parents
    if normalizer == "leaky":
        coupling = reference.over_parents_or_nobody
    for b, u in enumerate(inputs["u"]):
        votes = reference.prediction_vectors(u, inputs["W"])
        routed = reference.routing(votes, 3, inputs["bias"], coupling, inputs["prior"])
        np.testing.assert_allclose(out.pose[b], routed.v, rtol=1e-11)
        np.testing.assert_allclose(out.activation[b], routed.lengths, rtol=1e-11)
        np.testing.assert_allclose(out.coupling[b], routed.c, rtol=1e-11)


# Values and gradients


@pytest.mark.parametrize(
    "iterations, normalizer",
    [
        pytest.param(
            iterations,
            normalizer,
            marks=[pytest.mark.slow] if iterations in (2, 5) and normalizer != "softmax" else [],
        )
        for iterations, normalizer in itertools.product((1, 2, 3, 5), NORMALIZERS)
    ],
)
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_stream_in_float64(x64, monkeypatch, gradient, iterations, normalizer):
    # Tiles of 3 capsules: the last of five has one.
    monkeypatch.setattr(stream, "TILE_BYTES", 3 * 4 * 7 * 3 * 5)
    inputs, weight = problem_data("ragged", bias=iterations != 2)
    inputs = {key: jnp.asarray(x, jnp.float64) for key, x in inputs.items()}
    if iterations > 3:
        del inputs["prior"]
    options = {"iterations": iterations, "normalizer": normalizer, "gradient": gradient}
    got = value_and_gradients("ragged", inputs, weight, implementation="stream", **options)
    expected = value_and_gradients("ragged", inputs, weight, implementation="naive", **options)
    assert got["pose"].dtype == jnp.float64
    assert worst_error(got, expected) <= 1e-12


@pytest.mark.parametrize("most", [0, 2, 100])
def test_sums_of_many_terms_are_not_written_out(monkeypatch, most):
    monkeypatch.setattr(stream, "MOST_TERMS", most)
    x = np.random.default_rng(0).normal(size=(4, 3, 5)).astype(np.float32)
    for axis, terms in ((0, 4), (1, 3)):
        traced = str(jax.make_jaxpr(functools.partial(stream._sum, axis=axis))(x))
        assert ("reduce_sum" in traced) == (terms > most)
        exact = np.sum(x, axis, np.float64)
        np.testing.assert_allclose(stream._sum(x, axis), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "iterations, gradient", [(3, "full"), (1, "full"), (2, "stop"), (3, "last")]
)
def test_route_by_kernels(implementation, iterations, gradient):
    check("ragged", implementation, iterations=iterations, gradient=gradient)


def explicit_passes(x, V, dS, normalizer):
    """The results of the passes in float64, from votes, 64 capsules at a time.

    dS is of two iterations: one with V, and an even one.
    """
    u, W = (np.asarray(x[key], np.float64) for key in "uW")
    prior = np.asarray(x["prior"], np.float64) if "prior" in x else np.zeros(W.shape[:2])
    nobody = normalizer == "leaky"
    even = 1 / (W.shape[1] + nobody)
    S, dV, du, dW = np.zeros(V.shape), np.zeros(V.shape), np.zeros(u.shape), np.zeros(W.shape)
    dprior = np.zeros(prior.shape)
    for start in range(0, len(W), 64):
        some = slice(start, start + 64)
        votes = np.einsum("ijdk,bik->bijd", W[some], u[:, some], optimize=True)
        e = np.exp(np.einsum("bijd,jdb->bij", votes, V, optimize=True) + prior[some])
        c = e / (e.sum(axis=2, keepdims=True) + nobody)
        S += np.einsum("bij,bijd->jdb", c, votes, optimize=True)
        dc = np.einsum("bijd,jdb->bij", votes, dS[0], optimize=True)
        db = c * (dc - (c * dc).sum(axis=2, keepdims=True))
        dprior[some] = db.sum(axis=0)
        dV += np.einsum("bij,bijd->jdb", db, votes, optimize=True)
        dvotes = np.einsum("bij,jdb->bijd", c, dS[0]) + np.einsum("bij,jdb->bijd", db, V)
        dvotes += even * dS[1].transpose(2, 0, 1)[:, None]
        du[:, some] = np.einsum("bijd,ijdk->bik", dvotes, W[some], optimize=True)
        dW[some] = np.einsum("bijd,bik->ijdk", dvotes, u[:, some], optimize=True)
    out = {"S": S, "dV": dV, "du": du, "dW": dW}
    return out | {"dprior": dprior} if "prior" in x else out


def test_explicit_passes_are_the_derivative():
    x, _ = problem_data("ragged")
    u, W, prior = (np.asarray(x[key], np.float64) for key in ("u", "W", "prior"))
    (B, I, _), (_, J, D, _) = u.shape, W.shape
    rng = np.random.default_rng(1)
    V, dS, dS_even = rng.normal(size=(3, J, D, B))
    got = explicit_passes(x, V, (dS, dS_even), "leaky")

    def along(u, W, V, prior, by_V):
        """sum(dS * S) + sum(dS_even * S_even) by loops, for complex numbers too."""
        total = 0
        for b in range(B):
            votes = reference.prediction_vectors(u[b], W)
            logits = prior + reference.agreement(votes, V[:, :, b])
            c = reference.over_parents_or_nobody(logits)
            total = total + np.sum(dS[:, :, b] * reference.weighted_sum(c, votes))
            if not by_V:
                even = np.full((I, J), 1 / (J + 1))
                total = total + np.sum(dS_even[:, :, b] * reference.weighted_sum(even, votes))
        return total

    arguments = {"du": u, "dW": W, "dV": V, "dprior": prior}
    for key, argument in arguments.items():
        direction = rng.normal(size=argument.shape)

        def f(x, key=key):
            return along(*(arguments | {key: x}).values(), by_V=key == "dV")

        expected = reference.derivative(f, argument, direction)
        np.testing.assert_allclose(np.sum(got[key] * direction), expected, rtol=1e-10)


def check_passes(name, implementation, dtype="float32"):
    problem = PROBLEMS[name]
    how = IMPLEMENTATIONS[implementation]
    backend, normalizer = stream.STREAM if how == "stream" else how, problem.normalizer
    x = problem.arrays(dtype)
    rng = np.random.default_rng(0)
    shape = (problem.J, problem.D, problem.B)
    V, *dS = 0.5 * rng.normal(size=(3, *shape)).astype(np.float32)

    @jax.jit
    def run(x, V, dS):
        prior = x["prior"].T if "prior" in x else None
        inputs = PassInputs(x["u"].transpose(2, 1, 0), x["W"].transpose(0, 3, 1, 2), prior)
        dV, once = backend.backward_state(inputs, V, dS[0], normalizer, None)
        out = {"S": backend.forward(inputs, V, normalizer), "dV": dV}
        gradients = backend.backward_inputs(inputs, V[None], dS, normalizer, False)
        if once is None:
            return out | by_name(gradients)
        _, twice = backend.backward_state(inputs, V, dS[0], normalizer, once)
        even = backend.backward_inputs(inputs, V[None][:0], dS[1:], normalizer, False)
        added = by_name(jax.tree.map(lambda x, y, z: y - x + z.astype(y.dtype), once, twice, even))
        return out | by_name(gradients) | {f"{key} with dV": x for key, x in added.items()}

    got = run(x, V, jnp.stack(dS))
    assert got["S"].dtype == jnp.float32 and got["du"].dtype == got["dW"].dtype == dtype
    exact = explicit_passes(x, V.astype(np.float64), np.float64(dS), normalizer)
    if "du with dV" in got:
        exact |= {f"{key} with dV": exact[key] for key in exact if key not in ("S", "dV")}
    assert worst_error(got, exact) <= TOLERANCES[dtype]


def by_name(gradients):
    """In the layouts of a problem's arrays."""
    out = {"du": gradients.u.transpose(2, 1, 0), "dW": gradients.W.transpose(0, 2, 3, 1)}
    return out if gradients.prior is None else out | {"dprior": gradients.prior.T}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", SMALL)
def test_small_problems(name, implementation):
    check_passes(name, implementation)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype, implementation):
    check_passes("two_blocks", implementation, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", [name for name in PROBLEMS if name not in SMALL])
def test_problems_of_the_papers_networks(name, implementation):
    check_passes(name, implementation)


# Under the transformations of JAX


@pytest.fixture(params=IMPLEMENTATIONS)
def gradient(request):
    """Gradients by u and W of a loss of the problem ``tiny``."""
    implementation = IMPLEMENTATIONS[request.param]

    def loss(u, W):
        return jnp.sum(route(dynamic(2), {}, u, W, implementation=implementation).pose ** 2)

    return jax.jit(jax.grad(loss, (0, 1)))


def test_vmap_over_seeds(gradient):
    seeds = [PROBLEMS["tiny"].arrays(seed=seed) for seed in range(3)]
    u, W = (jnp.stack([s[key] for s in seeds]) for key in "uW")
    together = jax.jit(jax.vmap(gradient))(u, W)
    for n in range(3):
        for a, b in zip(gradient(u[n], W[n]), together):
            np.testing.assert_allclose(a, b[n], rtol=1e-5, atol=1e-7)


def test_shard_map_over_the_batch(gradient):
    x = PROBLEMS["tiny"].arrays()
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def body(u, W):
        du, dW = gradient(u, W)
        return du, jax.lax.psum(dW, "data")

    data, whole = PartitionSpec("data"), PartitionSpec()
    mapped = jax.shard_map(
        body, mesh=mesh, in_specs=(data, whole), out_specs=(data, whole), check_vma=False
    )
    for a, b in zip(jax.jit(mapped)(x["u"], x["W"]), gradient(x["u"], x["W"])):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_scan(gradient):
    x = PROBLEMS["tiny"].arrays()

    def step(W, _):
        return W - 0.1 * gradient(x["u"], W)[1], None

    W = x["W"]
    for _ in range(2):
        W, _ = jax.jit(step)(W, None)
    scanned, _ = jax.jit(lambda W: jax.lax.scan(step, W, length=2))(x["W"])
    np.testing.assert_allclose(scanned, W, rtol=1e-5, atol=1e-7)


# Memory

# Quick compilation, as in other tests, copies sums that loops could add to in place.
USUAL = (
    {"xla_cpu_use_fusion_emitters": True}
    if jax.__version_info__ < (0, 11)
    else {"xla_cpu_opt_preset": "CPU_OPT_PRESET_DEFAULT"}
)


def compiled(name, implementation):
    problem = PROBLEMS[name]

    def loss(x):
        return jnp.sum(problem.route(x, implementation=implementation).pose ** 2)

    return jax.jit(jax.value_and_grad(loss)).lower(problem.specs()).compile(USUAL)


def test_stream_needs_a_tenth_of_the_memory():
    naive, streamed = (compiled("mnist_b128", how) for how in ("naive", "stream"))
    memory = [c.memory_analysis().temp_size_in_bytes for c in (naive, streamed)]
    assert memory[0] > PROBLEMS["mnist_b128"].votes_bytes > 10 * memory[1] / 4
    assert memory[1] <= memory[0] / 10


@pytest.mark.parametrize("batch, streams", [(1, False), (8, False), (16, True), (128, True)])
def test_auto_streams_what_does_not_fit_the_cache(batch, streams):
    u, W = (jax.ShapeDtypeStruct(s, "float32") for s in ((batch, 1152, 8), (1152, 10, 16, 8)))
    out = jax.eval_shape(lambda u, W: route(dynamic(), {}, u, W), u, W)
    assert (out.coupling is None) == streams


# Bad input


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"u": jnp.zeros((2, 5))}, r"u must be \[B, I, K\]"),
        ({"u": jnp.zeros((2, 4, 8))}, r"u must be \[B, I, K\] of W \(5, 3, 16, 8\)"),
        ({"W": jnp.zeros((5, 3, 16))}, r"W must be \[I, J, D, K\]"),
        ({"u": jnp.zeros((2, 5, 8), jnp.int32)}, "u must be of a floating type, not int32"),
        ({"u": jnp.zeros((2, 5, 8), jnp.bfloat16)}, "u and W must be of one type"),
        ({"prior": jnp.zeros((3, 5))}, r"prior must be \(5, 3\) for I, J, D, K = \(5, 3, 16, 8\)"),
        ({"bias": jnp.zeros((16, 3))}, r"bias must be \(3, 16\)"),
    ],
)
@pytest.mark.parametrize("implementation", ["naive", "stream"])
def test_wrong_arrays(implementation, changes, message):
    inputs = {"u": jnp.zeros((2, 5, 8)), "W": jnp.zeros((5, 3, 16, 8))} | changes
    with pytest.raises(AssertionError, match=message):
        PROBLEMS["tiny"].route(inputs, implementation=implementation)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"implementation": "fast"}, "implementation must be one of auto, naive, stream, pallas"),
        ({"implementation": "pallas"}, "pallas kernels run on TPU and NVIDIA GPU, not on cpu"),
        ({"gradient": "none"}, "gradient must be one of full, stop, last, not 'none'"),
        ({"votes": "half"}, "votes must be one of full, shared, .*, not 'half'"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        route(dynamic(), {}, jnp.zeros((2, 5, 8)), jnp.zeros((5, 3, 16, 8)), **options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"normalizer": "none"}, "normalizer must be one of softmax, leaky, .*, not 'none'"),
        ({"iterations": 0}, "iterations must be 1 or more, not 0"),
        ({"squash": "none of it"}, "squash must be one of paper, .*, not 'none of it'"),
        ({"prior": "mine"}, "prior must be one of zeros, learned, not 'mine'"),
    ],
)
def test_wrong_options_of_dynamic_routing(options, message):
    with pytest.raises(ValueError, match=message):
        dynamic(**options)


def test_inputs_are_computed_once_however_often_they_are_read():
    def loss(x, W):
        pose = route(dynamic(3), {}, jnp.sin(x), W, implementation="stream").pose
        return jnp.sum(pose**2)

    gradient = jax.jit(jax.grad(loss, 1))
    text = gradient.lower(jnp.ones((32, 96, 8)), jnp.ones((96, 10, 16, 8))).compile().as_text()
    assert text.count(" sine(") == 1
