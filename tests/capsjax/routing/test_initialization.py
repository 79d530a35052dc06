"""The factor with which a routed layer starts."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capsjax import from_module
from capsjax.capsules import Capsules
from capsjax.modules import RoutedCapsules
from capsjax.routing import ROUTINGS, Sizes, make_routing
from capsjax.routing.initialization import SQUASHED_LENGTHS, initial_votes, usual_length
from capsjax.squash import SQUASHES, safe_norm

PAPER = Sizes(1152, 10, 16, 8)
# Mean length of the class capsules for input capsules of mean squared length 1/4, whatever the
# sizes. Squashed lengths of normal sums of the paper's size average 0.4 with even couplings, and
# agreement lengthens them; with J = 2 and 3 few capsules are averaged.
BAND = 0.15, 0.75
BY_LENGTH = sorted(set(ROUTINGS) - {"self", "em", "vb", "inverted", "heinsen"})
COUNTS = (2, 3, 5, 10, 47, 100, 1000)


@functools.cache
def inputs(I, K=8):
    pose = np.random.default_rng(0).normal(size=(2, I, K)).astype(np.float32)
    pose *= 0.5 / np.linalg.norm(pose, axis=-1, keepdims=True)
    return Capsules(pose, np.full((2, I), 0.5, np.float32))


def activation(name, I, J, D=16, dtype=jnp.float32, **options):
    routing = make_routing(name, **options)
    model = from_module(
        lambda rngs: RoutedCapsules(
            I, 8, J, D, routing=routing, implementation="naive", dtype=dtype, rngs=rngs
        )
    )

    def initial(key, x):
        return model.apply(model.init(key), x).activation

    return np.asarray(jax.jit(initial)(jax.random.key(0, impl="rbg"), inputs(I)), np.float32)


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_the_paper_s_layer_is_left_as_it_is(iterations):
    routing = make_routing("dynamic", iterations=iterations)
    fitted = routing.for_sizes(PAPER, initial_votes(PAPER, "full", 1))
    S = np.random.default_rng(0).normal(size=(10, 16)).astype(np.float32)
    got, want = (r.update({}, S, (0 * S, 0 * S), 0)[1] for r in (fitted, routing))
    np.testing.assert_array_equal(got, want)
    assert fitted.for_sizes is None


@pytest.mark.parametrize("squash", ["exponential", "half"])
def test_another_squash_starts_with_the_lengths_of_the_paper(squash):
    got, want = (activation("dynamic", 1152, 10, squash=name).mean() for name in (squash, "paper"))
    np.testing.assert_allclose(got, want, rtol=0.02)


@pytest.mark.parametrize("name", SQUASHED_LENGTHS)
def test_lengths_of_squashed_vectors(name):
    s = np.float32([[0.1, 0, 0], [0, 0.7, 0], [0, 3, 4]])
    want = safe_norm(SQUASHES[name](s))
    got = [SQUASHED_LENGTHS[name](float(np.linalg.norm(x))) for x in s]
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert set(SQUASHED_LENGTHS) == set(SQUASHES)


def test_even_couplings_have_a_closed_form():
    """One pass without squash: the root mean square is sqrt(D I 0.01 / 4) / J of the paper's."""
    want = math.sqrt(16 * 1152 * 0.01 / 4) / 10
    assert usual_length(1, "none") == pytest.approx(want)
    for I, J, D in [(40, 300, 8), (3000, 2, 16)]:
        lengths = activation("uniform", I, J, D, squash="none")
        np.testing.assert_allclose(np.sqrt(np.mean(lengths**2)), want, rtol=0.2)


@pytest.mark.parametrize("J", COUNTS)
def test_lengths_for_any_number_of_classes(J):
    mean = activation("dynamic", 64, J).mean()
    assert BAND[0] < mean < BAND[1]


@pytest.mark.parametrize("name", BY_LENGTH)
def test_lengths_of_all_algorithms(name):
    assert BAND[0] < activation(name, 64, 2).mean() < BAND[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_LENGTH)
@pytest.mark.parametrize("J", COUNTS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_lengths_of_all_algorithms_for_any_number_of_classes(name, J, dtype):
    for I in (16, 300, 4608) if J < 100 else (16, 300):
        assert BAND[0] < activation(name, I, J, dtype=dtype).mean() < BAND[1], I


@pytest.mark.parametrize("name", ["em", "vb"])
@pytest.mark.parametrize("J", [2, 100])
def test_activations_of_mixtures_are_undecided(name, J):
    a = activation(name, 64, J)
    assert 0.05 < a.mean() < 0.95


@pytest.mark.parametrize("name", ["random", "frozen"])
def test_constants_stay_constants_in_a_layer(name):
    routing = make_routing(name)
    fitted = routing.for_sizes(Sizes(20, 2, 4, 8), initial_votes(Sizes(20, 2, 4, 8), "full", 1))
    assert (fitted.name, fitted.constants) == (name, ("prior",))


def test_tolerance_leaves_layers_as_they_are():
    """The authors' networks keep a sum without a factor; one of two classes gets it."""

    def factor(J, tolerance):
        sizes = PAPER._replace(J=J)
        votes = initial_votes(sizes, "full", 1, tolerance=tolerance)
        routing = make_routing("uniform", squash="none").for_sizes(sizes, votes)
        S = np.ones((J, 16), np.float32)
        return float(routing.update({}, S, (S, S), 0)[1][0, 0])

    assert factor(5, 4.0) == 1 and factor(5, 1.0) == pytest.approx(0.5)
    assert factor(2, 4.0) == pytest.approx(0.2)
    assert factor(100, 4.0) == pytest.approx(10)


@pytest.mark.parametrize("I, J", [(1152, 10), (40, 100)])
def test_couplings_over_inputs_start_as_those_over_outputs(I, J):
    """They are shares of one among I capsules, and no longer among J."""
    lengths = [activation("dynamic", I, J, over=over).mean() for over in ("inputs", "outputs")]
    assert lengths[0] == pytest.approx(lengths[1], rel=0.1), lengths


@pytest.mark.parametrize("identity", [True, False])
@pytest.mark.parametrize("votes", ["matrix", "conv_matrix"])
def test_matrices_with_and_without_identity_start_with_usual_lengths(votes, identity):
    """Half of what the capsules of a type are is the same at all positions."""
    rng, types = np.random.default_rng(0), 32
    pose = rng.normal(size=(2, 1, types, 16)) + rng.normal(size=(2, 36, types, 16))
    pose = np.float32(0.5 * pose / np.linalg.norm(pose, axis=-1, keepdims=True))
    x = Capsules(pose.reshape(2, 1152, 16), np.full((2, 1152), 0.5, np.float32))
    options = {"votes": votes, "types": types, "identity": identity}
    model = from_module(lambda rngs: RoutedCapsules(1152, 16, 10, 16, rngs=rngs, **options))
    length = model.apply(model.init(jax.random.key(0)), x).activation.mean()
    assert BAND[0] < length < BAND[1]


def test_a_kernel_init_of_one_s_own_has_no_factor():
    def lengths(**options):
        routing = make_routing("uniform", squash="none")
        model = from_module(
            lambda rngs: RoutedCapsules(20, 8, 2, 16, routing=routing, rngs=rngs, **options)
        )
        return model.apply(model.init(jax.random.key(0)), inputs(20)).activation

    own, fitted = lengths(kernel_init=jax.nn.initializers.normal(0.1)), lengths()
    factor = 2 / 10 * math.sqrt(1152 / 20)
    np.testing.assert_allclose(fitted, factor * own, rtol=1e-4)
