"""Every routing algorithm by name: the papers in NumPy loops, streaming, symmetries, extremes.

Compiling takes most of the time, hence the sizes, the compiler's options, and compiled functions
that several tests share.
"""

import dataclasses
import functools
import inspect
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import reference_routing as loops

from capsjax import Capsules, RoutedCapsules, from_module
from capsjax.routing import (
    GRADIENTS,
    ROUTINGS,
    InputCapsules,
    RoutingTraits,
    Sizes,
    dynamic_routing,
    em,
    has_pass_kernels,
    log_mean_coupling,
    make_routing,
    mixture,
    options_of,
    route,
    run_routing,
    stream,
    tiles,
    vb,
)
from capsjax.squash import safe_norm, squash
from capsjax.votes import VOTES

B, I, J, D, K = 3, 10, 3, 4, 4
TYPES = 2  # of input capsules, for votes by type
FULLEST = {"iterations": 3, "prior": "learned", "bias": True}


def compiled(function, *args):
    return jax.jit(function).lower(*args).compile()


def fullest(name):
    """A routing with all the parameters that it can have."""
    return make_routing(name, **{k: v for k, v in FULLEST.items() if k in options_of(name)})


def parameters(routing, sizes, rng):
    """Random ones, of the names and shapes of those that training starts from."""
    shapes = jax.eval_shape(lambda: routing.init_params(jax.random.key(0), Sizes(*sizes)))
    return {name: np.asarray(0.5 * rng.normal(size=x.shape)) for name, x in shapes.items()}


def worst_error(got, expected):
    """Largest difference of any tensor, relative to its largest element; a zero must be one."""
    got, tree = jax.tree.flatten(got)
    expected, other = jax.tree.flatten(expected)
    assert tree == other
    errors = [0.0]
    for a, b in zip(got, expected, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape and np.isfinite(a).all() and np.isfinite(b).all()
        difference = np.abs(a - b).max()
        errors.append(difference / max(np.abs(b).max(), 1e-300) if difference else 0.0)
    return max(errors)


# The papers


def agreeing(normalizer):
    return lambda votes, u, a, p, R, **options: loops.dynamic(
        votes, R, normalizer=normalizer, **p, **options
    )


def of_logits(votes, u, a, p, R):
    return loops.fixed(votes, p["prior"], bias=p.get("bias"))


# name: function of votes, poses, activations, parameters, passes, and perhaps squash or scale
PAPERS = {
    "dynamic": agreeing("softmax"),
    "leaky": agreeing("leaky"),
    "sigmoid": agreeing("sigmoid"),
    "maxmin": agreeing("maxmin"),
    "sparsemax": agreeing("sparsemax"),
    "entmax": agreeing("entmax"),
    "uniform": lambda votes, u, a, p, R, **options: loops.uniform(votes, **p, **options),
    "random": of_logits,
    "static": of_logits,
    "frozen": of_logits,
    "self": lambda votes, u, a, p, R: loops.self_routing(votes, u, a, **p),
    "inverted": lambda votes, u, a, p, R: loops.inverted(votes, R, **p),
    "self_attention": lambda votes, u, a, p, R: loops.self_attention(votes, **p),
    "em": lambda votes, u, a, p, R: loops.em(votes, a, R, **p),
    "vb": lambda votes, u, a, p, R: loops.vb(votes, a, R, **p),
    "kmeans": lambda votes, u, a, p, R, **options: loops.kmeans(votes, R, **options),
    "kde": lambda votes, u, a, p, R, **options: loops.kde(votes, R, **options),
    "heinsen": lambda votes, u, a, p, R: loops.heinsen(votes, u, R, p),
}


class Case(NamedTuple):
    name: str
    options: dict
    I: int = I
    J: int = J


CASES = [
    *(Case(n, {k: v for k, v in FULLEST.items() if k in options_of(n)}) for n in ROUTINGS),
    Case("dynamic", {"iterations": 1}),
    Case("dynamic", {"iterations": 2, "squash": "half"}),
    Case("uniform", {"squash": "exponential"}),
    Case("kmeans", {"squash": "none"}),
    Case("kde", {"squash": "paper"}),
    Case("sigmoid", {"scale": 0.2, "bias": True}),
    Case("maxmin", {}),  # all logits are equal at first
    Case("em", {"iterations": 1}),
    Case("em", {"iterations": 2}),
    Case("vb", {"iterations": 2}),
    Case("heinsen", {"iterations": 1}),
    *(Case(n, {}, I=1) for n in ("em", "vb")),
    *(Case(n, {}, J=1) for n in ("em", "vb", "heinsen", "maxmin", "kde")),
]


def example(routing, I=I, J=J, seed=0):
    """Votes that agree somewhat, poses, activations and parameters, of one example."""
    rng = np.random.default_rng(seed)
    votes = rng.normal(size=(I, J, D)) + 0.7 * rng.normal(size=(J, D))
    pose, activation = rng.normal(size=(I, K)), rng.uniform(0.1, 0.9, size=I)
    return {"votes": votes, "pose": pose, "activation": activation}, parameters(
        routing, (I, J, D, K), rng
    )


def loss_weights(J=J):
    rng = np.random.default_rng(99)
    return rng.normal(size=(J, D)), rng.normal(size=J)


def loss_of(out, pose, activation):
    """A function of everything that routing gives."""
    return (pose * out.pose).sum() + (activation * out.activation).sum()


@functools.cache
def alone(case):
    """Compiled: gradients of the loss by children and parameters of an example, and the output."""
    name, options, I, J = case[0], dict(case[1]), *case[2:]
    routing = make_routing(name, **options)

    def loss(children, params):
        out = run_routing(routing, params, InputCapsules(**children))
        return loss_of(out, *loss_weights(J)), out

    return compiled(jax.grad(loss, (0, 1), has_aux=True), *example(routing, I, J))


def key(case):
    return case.name, tuple(case.options.items()), case.I, case.J


def case_name(case):
    sizes = (f"{x}={getattr(case, x)}" for x in "IJ" if getattr(case, x) == 1)
    return "-".join([case.name, *map(str, case.options.values()), *sizes])


def test_every_name_has_a_paper():
    assert PAPERS.keys() == ROUTINGS.keys() == {case.name for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_values_and_gradients_are_the_papers(x64, case):
    routing = make_routing(case.name, **case.options)
    options = {k: v for k, v in case.options.items() if k in ("squash", "scale")}
    children, params = example(routing, case.I, case.J)

    def paper(votes, pose, activation, **p):
        return PAPERS[case.name](votes, pose, activation, p, routing.passes, **options)

    (dchildren, dparams), out = alone(key(case))(children, params)
    expected = paper(**children, **params)
    for field in expected._fields:
        assert worst_error(getattr(out, field), getattr(expected, field)) <= 1e-10, field

    inputs, gradients, rng = children | params, dchildren | dparams, np.random.default_rng(1)
    weights = loss_weights(case.J)
    assert inputs.keys() == gradients.keys() and set(routing.constants) <= params.keys()
    for name, x in inputs.items():
        direction = rng.normal(size=x.shape)
        got = np.sum(gradients[name] * direction)
        exact = reference.derivative(
            lambda x, name=name: loss_of(paper(**inputs | {name: x}), *weights), x, direction
        )
        if case in CASES[: len(ROUTINGS)] and name not in ("pose", "activation"):
            assert exact  # or the comparison would show little
        if name in routing.constants:
            exact = 0
        assert abs(got - exact) <= 1e-10 * abs(exact), name


def test_defaults():
    passes = {name: make_routing(name).passes for name in ROUTINGS}
    one = {name: 1 for name in ("uniform", "random", "static", "frozen", "self")}
    assert passes == dict.fromkeys(ROUTINGS, 3) | one | {"self_attention": 2, "heinsen": 2}
    assert {name for name in ROUTINGS if make_routing(name).traits.scores_are_logits} == {
        "inverted",
        "heinsen",
    }
    assert {name for name in ROUTINGS if make_routing(name).traits.poses_are_means} == {
        "em",
        "vb",
        "self",
        "kde",
    }


# Batches, streaming


SHARE = 4  # input capsules of a tile: 4, 4 and 2 of the 10


def both(name, gradient="full", votes="full"):
    """Compiled: loss and output, and gradients, by each implementation; the tiles of stream."""
    return compiled_both(name, gradient, votes)


@functools.cache  # which takes a default for another argument
def compiled_both(name, gradient, votes):
    routing, weights = fullest(name), loss_weights()

    def loss(x, implementation):
        out = route(
            routing,
            {name: x[name] for name in x if name not in ("u", "W", "activation")},
            x["u"],
            x["W"],
            x["activation"],
            votes=votes,
            gradient=gradient,
            implementation=implementation,
        )
        pose, activation = (w[None] for w in weights)
        return loss_of(out, pose, activation), out

    def everything(x):
        gradients = jax.value_and_grad(loss, has_aux=True)
        return {how: gradients(x, how) for how in ("naive", "stream")}

    seen = []

    def spy_tiles(step, carry, inputs, tile, original=tiles._over_tiles):
        seen.append(("tiles", tile))
        return original(step, carry, inputs, tile)

    def spy_stream(inputs, original=stream._tile_size):
        seen.append(("stream", original(inputs)))
        return original(inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "TILE_BYTES", SHARE * 4 * B * J * D)
        patch.setattr(stream, "TILE_BYTES", SHARE * 4 * B * J * K)
        patch.setattr(tiles, "_over_tiles", spy_tiles)
        patch.setattr(stream, "_tile_size", spy_stream)
        return compiled(everything, batch(name, votes)), set(seen)


def batch(name, votes="full", seed=0):
    """Inputs and parameters of a batch of B; only the examples depend on the seed."""
    rng = np.random.default_rng(1)
    W = 0.5 * rng.normal(size=VOTES[votes].shape(I, J, D, K, TYPES))
    params = parameters(fullest(name), (I, J, D, K), rng)
    rng = np.random.default_rng((2, seed))
    u, activation = rng.normal(size=(B, I, K)), rng.uniform(0.1, 0.9, size=(B, I))
    # Poses with a mean, so that votes agree somewhat.
    return {"u": u + 0.7, "W": W, "activation": activation} | params


ALSO_CONSTANT = ("dynamic", "em", "inverted", "self_attention", "heinsen")
STREAMED = [
    *((name, "full", "full") for name in ROUTINGS),
    *((name, gradient, "full") for name in ALSO_CONSTANT for gradient in GRADIENTS[1:]),
    *(
        pytest.param(
            name, "full", votes, marks=[pytest.mark.slow] if votes != "conv_matrix" else []
        )
        for name in ("dynamic", "em")
        for votes in VOTES
        if votes != "full"
    ),
]


@pytest.mark.parametrize("name, gradient, votes", STREAMED)
def test_stream_is_naive(x64, name, gradient, votes):
    function, seen = both(name, gradient, votes)
    # Several tiles and a smaller last one; even couplings need none.
    engine = "stream" if has_pass_kernels(fullest(name), votes) else "tiles"
    assert I > SHARE and I % SHARE
    assert seen == (set() if name == "uniform" else {(engine, SHARE)})
    result = function(batch(name, votes))
    ((naive, out), expected), ((streamed, got), gradients) = result["naive"], result["stream"]
    assert got.pose.dtype == jnp.float64 and got.coupling is None
    assert worst_error(got, out._replace(coupling=None)) <= 1e-12
    assert worst_error(streamed, naive) <= 1e-12
    assert worst_error(gradients, expected) <= 1e-12
    for constant in fullest(name).constants:
        assert not gradients[constant].any()


def last_pass_of_dynamic(gradient, votes, a, prior, bias):
    """The last of three passes as a function of inputs, the rest being a constant."""
    c = loops.dynamic(votes, 3, prior=prior, bias=bias).coupling
    V = sum(loops.dynamic(votes, R, prior=prior, bias=bias).pose for R in (1, 2))

    def function(votes, a, prior, bias):
        if gradient == "last":
            return loops.fixed(votes, prior + reference.agreement(votes, V), bias=bias)
        return loops.by_length(loops.outputs(reference.weighted_sum(c, votes), "paper", bias), c)

    return function


def last_pass_of_em(gradient, votes, a, beta_u, beta_a):
    c = loops.em(votes, a, 3, beta_u, beta_a).coupling
    before = loops.em(votes, a, 2, beta_u, beta_a).coupling
    state = loops.em_parents(votes, a, before, 2, beta_u, beta_a)

    def function(votes, a, beta_u, beta_a):
        r = c if gradient == "stop" else reference.over_parents(loops.em_logits(votes, *state))
        mean, _, logits = loops.em_parents(votes, a, r, 3, beta_u, beta_a)
        return loops.Routed(mean, np.array([loops.sigmoid(x) for x in logits]), r)

    return function


@pytest.mark.parametrize("gradient", GRADIENTS[1:])
@pytest.mark.parametrize(
    "name, last_pass", [("dynamic", last_pass_of_dynamic), ("em", last_pass_of_em)]
)
def test_constants_of_the_last_pass(x64, name, last_pass, gradient):
    x = batch(name)
    (_, out), gradients = both(name, gradient)[0](x)["naive"]
    params = {k: v for k, v in x.items() if k not in ("u", "W", "activation")}
    votes = [reference.prediction_vectors(u, x["W"]) for u in x["u"]]
    functions = [last_pass(gradient, v, a, **params) for v, a in zip(votes, x["activation"])]

    def outputs(u, W, activation, **params):
        votes = [reference.prediction_vectors(one, W) for one in u]
        return [f(v, a, **params) for f, v, a in zip(functions, votes, activation)]

    for b, routed in enumerate(outputs(**x)):
        assert worst_error((out.pose[b], out.coupling[b]), (routed.pose, routed.coupling)) <= 1e-10
    rng = np.random.default_rng(1)
    for key, value in x.items():

        def loss(value, key=key):
            return sum(loss_of(one, *loss_weights()) for one in outputs(**x | {key: value}))

        direction = rng.normal(size=value.shape)
        exact = reference.derivative(loss, value, direction)
        got = np.sum(gradients[key] * direction)
        assert abs(got - exact) <= 1e-10 * abs(exact), key


@pytest.mark.parametrize("name", ROUTINGS)
def test_order_of_the_input_capsules(x64, name):
    """Permuting them permutes couplings and gradients: they are a set, whichever comes first."""
    x, order = batch(name), np.random.default_rng(0).permutation(I)
    assert order[0] != 0
    axis = {"u": 1, "activation": 1, "W": 0} | dict.fromkeys(fullest(name).input_params, 0)

    def permuted(x):
        return {k: np.take(np.asarray(v), order, axis[k]) if k in axis else v for k, v in x.items()}

    function = both(name)[0]
    before, after = function(x), function(permuted(x))
    for how in before:
        (loss, out), gradients = before[how]
        if how == "naive":
            out = out._replace(coupling=out.coupling[:, order])
        assert worst_error(after[how], ((loss, out), permuted(gradients))) <= 1e-12


@pytest.mark.parametrize("name", ROUTINGS)
def test_couplings_and_activations_are_shares(x64, name):
    routing = fullest(name)
    for scale in (1, 30):  # with settled couplings, too
        x = batch(name)
        (_, out), _ = both(name)[0](x | {"u": scale * x["u"]})["naive"]
        coupling, activation = np.asarray(out.coupling), np.asarray(out.activation)
        assert coupling.shape == (B, I, J)
        assert (coupling >= 0).all() and (coupling <= 1 + 1e-12).all()
        total = coupling.sum(-1)
        if name in ("leaky", "sigmoid", "maxmin"):
            assert np.ptp(total) > 1e-3
            assert name != "leaky" or (total <= 1 + 1e-12).all() and total.min() < 0.999
        else:
            np.testing.assert_allclose(total, 1, rtol=1e-12)
        if not routing.traits.scores_are_logits:
            assert (activation >= 0).all() and (activation <= 1).all()
        if name == "self":
            np.testing.assert_allclose(activation.sum(-1), 1, rtol=1e-12)


@pytest.mark.parametrize("name", ROUTINGS)
def test_other_examples_in_the_batch_do_not_matter(x64, name):
    x, mates = batch(name), batch(name, seed=1)
    children = {
        "votes": reference.prediction_vectors(x["u"][0], x["W"]),
        "pose": x["u"][0],
        "activation": x["activation"][0],
    }
    params = {k: v for k, v in x.items() if k not in ("u", "W", "activation")}
    case = next(case for case in CASES if case.name == name)
    (dchildren, _), single = alone(key(case))(children, params)
    for k in ("u", "activation"):
        mates[k] = np.concatenate([x[k][:1], 1e3 * mates[k][1:]])
    assert not any(np.array_equal(x["u"][b], mates["u"][b]) for b in range(1, B))
    function = both(name)[0]
    for inputs in (x, mates):
        for (_, out), gradients in function(inputs).values():
            first = {"pose": out.pose[0], "activation": out.activation[0]}
            exact = {"pose": single.pose, "activation": single.activation}
            assert worst_error(first, exact) <= 1e-12
            assert worst_error(gradients["activation"][0], dchildren["activation"]) <= 1e-12


# Extremes


@pytest.mark.parametrize("name", ROUTINGS)
def test_nothing_there(name):
    """Zero poses, then zero activations: values and gradients are finite in float32."""
    routing, weights = fullest(name), [np.float32(w)[None] for w in loss_weights()]
    x = jax.tree.map(np.float32, batch(name))

    def loss(x):
        params = {k: v for k, v in x.items() if k not in ("u", "W", "activation")}
        # As lengths of poses, but those of the data may be replaced.
        activation = x["activation"] * safe_norm(x["u"])
        out = route(routing, params, x["u"], x["W"], activation, implementation="naive")
        return loss_of(out, *weights), out

    function = compiled(jax.value_and_grad(loss, has_aux=True), x)
    for key in ("u", "activation"):
        nothing = x | {key: np.zeros_like(x[key])}
        for path, leaf in jax.tree_util.tree_leaves_with_path(function(nothing)):
            assert leaf.dtype == jnp.float32
            assert np.isfinite(leaf).all(), (key, jax.tree_util.keystr(path))


# Bugs: NaN gradients of kmeans where 0 < |u| < 1e-19, of self-attention where |u| is 1e4, and of
# sparsemax above 1e8.
LARGEST = {"em": "1e9"}  # of votes; 1e15 of the others


@functools.cache
def compiled_extremes(name, I, J, D, K):
    routing, rng = fullest(name), np.random.default_rng(1)
    params = jax.tree.map(np.float32, parameters(routing, (I, J, D, K), rng))
    u, W = rng.normal(size=(B, I, K)), rng.normal(size=(I, J, D, K))
    activation, weights = rng.uniform(0.1, 0.9, size=(B, I)), rng.normal(size=(J, D))

    def loss(x, params, implementation):
        out = route(routing, params, x["u"], x["W"], x["activation"], implementation=implementation)
        return jnp.sum(np.float32(weights)[None] * out.pose) + jnp.sum(out.activation), out

    def everything(x, params):
        gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)
        return {how: gradients(x, params, how) for how in ("naive", "stream")}

    x = jax.tree.map(np.float32, {"u": u, "W": W, "activation": activation})
    return compiled(everything, x, params), x, params


def test_kde_has_finite_gradients_where_an_output_has_next_to_no_weight():
    """Without a squash couplings reach 1e-30, whose square is zero in float32."""
    routing = make_routing("kde", squash="none")
    votes = np.random.default_rng(0).normal(size=(400, 4, 3, 4)).astype(np.float32)

    def total(votes):
        capsules = InputCapsules(votes, jnp.ones((4, 2)), jnp.ones(4))
        return run_routing(routing, {}, capsules).pose[:, 0].sum()

    for size in (1, 3, 6, 10):
        assert np.isfinite(jax.vmap(jax.grad(total))(size * votes)).all(), size


@pytest.mark.parametrize("name", ROUTINGS)
def test_range_in_which_values_and_gradients_are_finite(name):
    """Votes from 1e-38 to the number that the docstring states, equal votes and outliers, too."""
    function, _ = ROUTINGS[name]
    stated = inspect.getdoc(getattr(function, "func", function))
    assert f"Safe for votes up to {LARGEST.get(name, '1e15')}" in " ".join(stated.split())
    largest = float(LARGEST.get(name, "1e15"))
    # Sizes at which XLA on CPU computes the logits of self-attention twice.
    run, x, params = compiled_extremes(name, 32, 5, 8, 8)
    equal = x | {"u": np.ones_like(x["u"]), "W": np.ones_like(x["W"])}
    outlier = equal | {"W": equal["W"].copy()}
    outlier["W"][0, 0] = largest / 100
    cases = {"equal": equal, "an outlier": outlier}
    for size in (1e-38, 1e-30, 1e-20, 1e-10, 1e-5, 1e4, 1e6, 1e8, 1e12, 1e15):
        if size <= largest:
            scale = np.float32(size / (10 if size == largest else 1))
            cases[f"u {size}"] = x | {"u": scale * x["u"]}
            cases[f"W {size}"] = x | {"W": scale * x["W"]}
            cases[f"both {size}"] = x | {k: np.sqrt(scale) * x[k] for k in ("u", "W")}
    for case, inputs in cases.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(run(inputs, params)):
            assert np.isfinite(leaf).all(), (case, jax.tree_util.keystr(path))


# Bug: the derivative of a mean divides by the square of the sum of its weights, and 1e-20 squared
# is no float32.
@pytest.mark.parametrize("name", ["em", "vb"])
def test_output_capsules_without_input(name):
    """Votes much wider than those for other parents get no share, in float32 exactly zero."""
    rng = np.random.default_rng(0)
    routing, votes = make_routing(name), 0.1 * rng.normal(size=(32, J, 16))
    params = parameters(routing, (32, J, 16, K), rng)
    inputs = params, votes, rng.uniform(0.2, 1, size=32)

    def loss(params, votes, activation):
        out = run_routing(routing, params, InputCapsules(votes, votes[:, 0, :K], activation))
        return jnp.sum(out.pose**2) + jnp.sum(out.activation), out

    params, votes, activation = jax.tree.map(np.float32, inputs)
    gradient = compiled(jax.grad(loss, (0, 1, 2), has_aux=True), params, votes, activation)
    shares = []
    for width in (3, 6, 8, 10, 30, 100):
        wide = votes * np.array([width, 1, 1], np.float32)[:, None]
        gradients, out = gradient(params, wide, activation)
        shares.append(np.asarray(out.coupling[:, 0]).max())
        for leaf in jax.tree.leaves((gradients, out)):
            assert np.isfinite(leaf).all(), width
    assert shares[0] > 1e-12 and shares[-1] == 0
    assert name == "em" or any(0 < share < 1e-19 for share in shares)


# Of couplings, outputs and gradients. The energies that vb normalises are 500 times as large here
# as their standard deviation, and so are the rounding errors of its activations.
@pytest.mark.parametrize(
    "module, tolerance, of_outputs, of_gradients",
    [(em, 5e-4, 5e-3, 1e-3), (vb, 1e-5, 500 * 4e-6, 500 * 4e-6)],
)
def test_float32_far_from_the_origin(monkeypatch, module, tolerance, of_outputs, of_gradients):
    """Votes of mean 10 and standard deviation 0.01: couplings hang on the small differences."""
    name = module.__name__.split(".")[-1]
    routing, rng = make_routing(name), np.random.default_rng(0)
    children = {
        "votes": 10 + 0.01 * rng.normal(size=(32, J, D)),
        "pose": rng.normal(size=(32, K)),
        "activation": rng.uniform(0.2, 1, size=32),
    }
    inputs = children, parameters(routing, (32, J, D, K), rng)
    single = jax.tree.map(np.float32, inputs)  # what float32 can hold
    children, params = jax.tree.map(np.float64, single)
    paper = PAPERS[name](children["votes"], children["pose"], children["activation"], params, 3)
    assert name == "vb" or paper.coupling.max() - paper.coupling.min() > 0.9

    def function(children, params):
        def loss(children, params):
            out = run_routing(routing, params, InputCapsules(**children))
            return loss_of(out, *(w.astype(out.pose.dtype) for w in loss_weights())), out

        return jax.grad(loss, (0, 1), has_aux=True)(children, params)

    def errors(inputs):
        gradients, out = compiled(lambda *x: function(*x), *inputs)(*inputs)
        assert out.pose.dtype == inputs[0]["votes"].dtype
        for field in ("pose", "activation"):
            assert worst_error(getattr(out, field), getattr(paper, field)) <= of_outputs
        return np.abs(np.asarray(out.coupling) - paper.coupling).max(), gradients

    with jax.enable_x64():
        error, exact = errors((children, params))
        assert error <= 1e-10
    error, gradients = errors(single)
    assert error <= tolerance
    assert worst_error(gradients, exact) <= of_gradients
    if name == "em":  # in vb the priors keep the variances from ever being this small
        sums, moments = mixture.sums, em.moments
        monkeypatch.setattr(mixture, "sums", lambda c, votes, shift: sums(c, votes, 0 * shift))
        monkeypatch.setattr(em, "moments", lambda stats, shift: moments(stats, 0 * shift))
        of_outputs = 10
        error, gradients = errors(single)
        assert error > 0.1 and worst_error(gradients, exact) > 0.1


# Bug: with the 1152 input capsules of MNIST all outputs were as long as they can be, where the
# squash is flat, and error stayed at 90%; with a tenth of them the same algorithms learned.
SCALED = ("sigmoid", "maxmin", "sparsemax", "entmax")


@pytest.mark.parametrize("name", ["dynamic", "leaky", *SCALED])
def test_a_large_layer_starts_where_it_can_learn(name):
    pose = squash(np.float32(0.45 * np.random.default_rng(0).normal(size=(2, 1152, 8))))
    children = Capsules(pose, safe_norm(pose))

    def lengths(routing):
        layer = from_module(
            lambda rngs: RoutedCapsules(1152, 8, 10, 16, routing=routing, rngs=rngs)
        )
        model = compiled(layer.apply, layer.init(jax.random.key(0)), children)
        return model(layer.init(jax.random.key(0)), children).activation

    routing = make_routing(name)
    assert 0.05 < lengths(routing).mean() < 0.6
    if name in SCALED:
        unscaled = dataclasses.replace(routing, for_sizes=None, traits=RoutingTraits())
        assert lengths(unscaled).mean() > 0.75


# Identities


def outputs(routing, votes, **params):
    """Where neither poses nor activations matter."""
    children = InputCapsules(votes, np.ones((len(votes), K)), np.ones(len(votes)))
    return run_routing(routing, params, children)


def compiled_outputs(routing, votes, **params):
    def function(votes, params):
        return outputs(routing, votes, **params)

    return compiled(function, votes, params)(votes, params)


def test_no_routing_is_one_matrix_product(x64):
    x = batch("uniform")
    u, W = x["u"], x["W"]

    def function(u, W):
        names = {"uniform": {}, "dynamic": {"iterations": 1}}
        return [
            route(make_routing(n, **o), {}, u, W, implementation="naive") for n, o in names.items()
        ]

    matrix = W.transpose(0, 3, 1, 2).reshape(I * K, J * D)
    s = (u.reshape(B, I * K) @ matrix / J).reshape(B, J, D)
    exact = np.array([[reference.squash(x) for x in one] for one in s])
    for out in compiled(function, u, W)(u, W):
        assert worst_error(out.pose, exact) <= 1e-12
        np.testing.assert_allclose(out.coupling, 1 / J, rtol=1e-12)


def test_learned_couplings_are_another_matrix(x64):
    x = batch("static")
    u, W, theta = x["u"], x["W"], x["prior"]
    scale = J * reference.over_parents(theta)[:, :, None, None]

    def function(u, W, theta):
        given = route(make_routing("static"), {"prior": theta}, u, W, implementation="naive")
        return given, route(make_routing("uniform"), {}, u, scale * W, implementation="naive")

    static, uniform = compiled(function, u, W, theta)(u, W, theta)
    assert worst_error(static.pose, uniform.pose) <= 1e-12
    assert worst_error(static.activation, uniform.activation) <= 1e-12


def test_self_attention_has_no_need_of_its_matrices(x64):
    (children, params) = example(make_routing("self_attention"))
    votes = children["votes"]
    attention = np.einsum("ijd,kjd->jik", votes, votes) / D**0.5  # [J, I, I] of the paper
    c = reference.over_parents(attention.sum(-1).T)
    out = compiled_outputs(make_routing("self_attention"), votes, **params)
    s = np.einsum("ij,ijd->jd", c + params["beta"], votes)
    assert worst_error(out.coupling, c) <= 1e-12
    assert worst_error(out.pose, np.array([loops.squash_exponential(x) for x in s])) <= 1e-12


@pytest.mark.parametrize("normalizer, name", [("softmax", "dynamic"), ("leaky", "leaky")])
def test_dynamic_is_procedure_1(x64, normalizer, name):
    children, params = example(fullest(name))
    votes = children["votes"]

    def function(votes, params):
        record = outputs(fullest(name), votes, **params)
        return record, dynamic_routing(votes, 3, normalizer=normalizer, **params)

    assert worst_error(*compiled(function, votes, params)(votes, params)) <= 1e-13


def test_frozen_couplings_are_the_mean(x64):
    rng = np.random.default_rng(0)
    couplings = rng.dirichlet(np.ones(J), size=(5, I))
    couplings[:, 0] = [0, 0.25, 0.75]  # sparsemax has zeros
    prior = log_mean_coupling(jnp.asarray(couplings.sum(0)), 5)
    out = compiled_outputs(
        make_routing("frozen"), example(make_routing("frozen"))[0]["votes"], prior=prior
    )
    np.testing.assert_allclose(out.coupling, couplings.mean(0), rtol=1e-12, atol=1e-300)


def test_random_couplings_are_drawn():
    routing, sizes = make_routing("random", bias=True), Sizes(200, 5, D, K)
    first, second = (routing.init_params(jax.random.key(n), sizes)["prior"] for n in (0, 1))
    assert first.shape == (200, 5) and not jnp.array_equal(first, second)
    assert abs(first.mean()) < 0.1 and abs(first.std() - 1) < 0.1


@pytest.mark.parametrize("name", ["static", "frozen", "dynamic"])
def test_couplings_are_even_before_training(name):
    routing = fullest(name)
    params = routing.init_params(jax.random.key(0), Sizes(I, J, D, K))
    children = jax.tree.map(np.float32, InputCapsules(**example(routing)[0]))

    def first_coupling(params, children):
        return run_routing(routing, params, children, trace=True).aux.coupling[0]

    first = compiled(first_coupling, params, children)(params, children)
    np.testing.assert_allclose(first, 1 / J, rtol=1e-6)


def test_inverse_temperature_of_em(x64):
    votes = example(make_routing("em"))[0]["votes"]
    betas = {"beta_u": np.full(J, 0.3), "beta_a": np.full(J, 0.2)}

    def logit(inverse_temperature):
        routing = make_routing("em", iterations=1, inverse_temperature=inverse_temperature)
        a = compiled_outputs(routing, votes, **betas).activation
        return np.log(a / (1 - a))

    np.testing.assert_allclose(logit(0.07), 7 * logit(0.01), rtol=1e-9)


# Bug: `inverse_temperature or 0.01` made 0.01 of zero.
def test_inverse_temperature_zero_of_em_is_zero(x64):
    votes = example(make_routing("em"))[0]["votes"]
    betas = {"beta_u": np.full(J, 0.3), "beta_a": np.full(J, 0.2)}
    routing = make_routing("em", inverse_temperature=0.0)
    np.testing.assert_array_equal(compiled_outputs(routing, votes, **betas).activation, 0.5)
    default = compiled_outputs(make_routing("em"), votes, **betas).activation
    assert abs(np.asarray(default) - 0.5).min() > 1e-4


# Bug: the scale that fits a layer's sizes was one of the inverse temperature, hence of beta_a, too.
@pytest.mark.parametrize("children, beta_a", [(6, -1000), (60, 300)])
def test_activations_of_em_are_gritzmans(children, beta_a):
    """Where the variances are one and beta_u is zero, the cost is zero, whatever the layer."""
    sizes = Sizes(children, 2, 3, 4)
    votes = np.ones((children, 2, 3), np.float32)
    votes[::2] = -1
    routing = make_routing("em", iterations=1)
    for one in (routing, routing.for_sizes(sizes, None)):
        out = outputs(one, jnp.asarray(votes), beta_u=jnp.zeros(2), beta_a=jnp.full(2, beta_a))
        exact = 1 / (1 + np.exp(-0.01 * 0.05 * beta_a))
        np.testing.assert_allclose(out.activation, exact, rtol=1e-5)
    # With beta_u the cost is D beta_u R, and R = I / J: in a layer 100 D beta_u whatever its sizes.
    beta_u = np.array([0.2, -0.3], np.float32)
    out = outputs(
        routing.for_sizes(sizes, None), jnp.asarray(votes), beta_u=beta_u, beta_a=jnp.zeros(2)
    )
    exact = 1 / (1 + np.exp(0.01 * 0.05 * 100 * 3 * beta_u.astype(float)))
    np.testing.assert_allclose(out.activation, exact, rtol=1e-5)


def test_initial_parameters_of_em_and_vb():
    for name, beta_a in (("em", -1000), ("vb", 0)):
        params = make_routing(name).init_params(jax.random.key(0), Sizes(I, J, D, K))
        np.testing.assert_array_equal(params["beta_a"], np.full(J, beta_a))
        np.testing.assert_array_equal(params["beta_u"], np.zeros(J))


def test_variance_floor_of_em_is_gritzmans(x64):
    """Equal votes have variance 1e-9."""
    out = outputs(
        make_routing("em", iterations=1), np.ones((4, 2, 3)), beta_u=np.zeros(2), beta_a=np.zeros(2)
    )
    logit = -0.01 * 0.05 * 3 * np.log(1e-9) / 2 * 4 / 2
    np.testing.assert_allclose(out.activation, 1 / (1 + np.exp(-logit)), rtol=1e-12)


# Traces


@pytest.mark.parametrize("name", ["dynamic", "em"])
def test_trace(x64, name):
    x, routing, R = batch(name), fullest(name), 3
    params = {k: v for k, v in x.items() if k not in ("u", "W", "activation")}

    def function(u, W, activation):
        return route(routing, params, u, W, activation, trace=True)

    args = x["u"], x["W"], x["activation"]
    out = compiled(function, *args)(*args)
    shapes = {"logits": (I, J), "coupling": (I, J), "pose": (J, D), "activation": (J,)}
    assert {k: v.shape for k, v in out.aux._asdict().items()} == {
        k: (B, R, *shape) for k, shape in shapes.items()
    }
    for field in ("coupling", "pose", "activation"):
        np.testing.assert_array_equal(getattr(out.aux, field)[:, -1], getattr(out, field))
    votes = reference.prediction_vectors(x["u"][1], x["W"])
    for t in range(R):
        paper = PAPERS[name](votes, x["u"][1], x["activation"][1], params, t + 1)
        for field in paper._fields:
            got = getattr(out.aux, field)[1, t]
            assert worst_error(got, getattr(paper, field)) <= 1e-10, (field, t)
        np.testing.assert_allclose(
            reference.over_parents(np.asarray(out.aux.logits[1, t])), paper.coupling, rtol=1e-10
        )


# Names and documents


@pytest.mark.parametrize(
    "name, hint",
    [("dynamc", "did you mean 'dynamic'"), ("self_atention", "did you mean 'self_attention'")],
)
def test_the_nearest_name_is_suggested(name, hint):
    with pytest.raises(ValueError, match=rf"one of dynamic, leaky, .*, not {name!r} \({hint}\?\)"):
        make_routing(name)


def test_no_name_is_near():
    with pytest.raises(ValueError, match="not 'xyz'$"):
        make_routing("xyz")


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("kmeans", {"bias": True}, "'kmeans' has no option 'bias', only iterations, squash"),
        ("self_attention", {"x": 1, "a": 2}, "has no option 'a', only scale"),
        ("leaky", {"normalizer": "softmax"}, "'leaky' has no option 'normalizer', only iterations"),
        *((n, {"iterations": 0}, "iterations must be 1 or more, not 0") for n in ("em", "kde")),
        *((n, {"squash": "?"}, "squash must be one of paper") for n in ("kmeans", "uniform")),
    ],
)
def test_wrong_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_routing(name, **options)


def test_algorithms_that_do_not_run_on_pass_kernels():
    params = make_routing("em").init_params(jax.random.key(0), Sizes(5, 3, 4, 4))
    arrays = params, jnp.zeros((2, 5, 4)), jnp.zeros((5, 3, 4, 4))
    message = "routing 'em' with full votes can't run on pass kernels: use stream"
    with pytest.raises(ValueError, match=message):
        route(make_routing("em"), *arrays, implementation=stream.STREAM)


def test_options():
    shared = ("prior", "bias", "squash", "scale", "over")
    assert options_of("dynamic") == ("iterations", "normalizer", *shared)
    assert options_of("leaky") == ("iterations", *shared)
    assert options_of("em") == ("iterations", "inverse_temperature", "cost_scale", "constants")
    assert options_of("self") == ()


@pytest.mark.parametrize("name", ROUTINGS)
def test_every_algorithm_is_described(name):
    function, line = ROUTINGS[name]
    assert line and "\n" not in line and not line.endswith(".") and len(line) < 60
    function = getattr(function, "func", function)  # of a partial
    own, of_file = inspect.getdoc(function), inspect.getdoc(inspect.getmodule(function))
    assert re.search(r"\b(19|20)\d\d\b|No paper", own), "a paper"
    like_dynamic = "see :func:`~capsjax.routing.dynamic.dynamic`"
    assert like_dynamic in own or re.search(r"[Pp]arameters?\b", own), "its parameters"
    assert re.search(r"\b[Pp]ass(es)?\b", own + of_file), "its cost"


# Memory


def test_stream_of_em_needs_a_fifth_of_the_memory():
    """Of value and gradients; only compiled."""
    routing, sizes = make_routing("em"), Sizes(1152, 10, 16, 8)
    params = routing.init_params(jax.random.key(0), sizes)
    u, W = (jax.ShapeDtypeStruct(s, "float32") for s in ((64, 1152, 8), (1152, 10, 16, 8)))

    def memory(implementation):
        def loss(params, u, W):
            return jnp.sum(route(routing, params, u, W, implementation=implementation).pose ** 2)

        function = compiled(jax.value_and_grad(loss, (0, 1, 2)), params, u, W)
        return function.memory_analysis().temp_size_in_bytes

    naive, streamed = memory("naive"), memory("stream")
    assert naive > 4 * 64 * 1152 * 10 * 16  # the votes
    assert streamed <= naive / 5
