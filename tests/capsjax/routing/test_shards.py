"""Input capsules divided among devices, against routing with all votes in memory, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from capsjax.routing import (
    GRADIENTS,
    ROUTINGS,
    CapsuleShards,
    Sizes,
    make_routing,
    options_of,
    route,
)
from capsjax.votes import VOTES

B, I, J, D, K, T = 4, 8, 3, 4, 4, 2


def shards(count=2):
    """Four devices, which divide the batch and the input capsules."""
    axes = ("data", "capsules")
    mesh = jax.make_mesh((4 // count, count), axes, axis_types=(AxisType.Auto,) * 2)
    return CapsuleShards(mesh, "capsules")


def arrays(routing, votes="full"):
    """Random arguments of route after the algorithm; parameters of both signs are shifted."""
    rng = np.random.default_rng(0)
    initial = routing.init_params(jax.random.key(0), Sizes(I, J, D, K))
    params = {n: np.asarray(x) + rng.uniform(0, 0.3, x.shape) for n, x in initial.items()}
    W = 0.5 * rng.normal(size=VOTES[votes].shape(I, J, D, K, T))
    return params, rng.normal(size=(B, I, K)), W, rng.uniform(0.1, 0.9, (B, I))


def value_and_gradients(routing, inputs, implementation, **options):
    """Returns the outputs, and the gradients of a loss of both by all arguments."""

    def loss(params, u, W, activation):
        if isinstance(implementation, CapsuleShards):  # the batch is on all devices before
            whole = PartitionSpec(implementation.mesh.axis_names)
            u = jax.lax.with_sharding_constraint(u, NamedSharding(implementation.mesh, whole))
        out = route(routing, params, u, W, activation, implementation=implementation, **options)
        weights = jnp.arange(1.0, 1 + out.pose.size).reshape(out.pose.shape)
        total = jnp.sum(jnp.sin(out.pose) * weights) + jnp.sum(out.activation * weights[..., 0])
        return total, (out.pose, out.activation)

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True))(*inputs)


def assert_same(found, wanted):
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(wanted), jax.tree.leaves(found), strict=True
    ):
        atol = 1e-9 * max(1.0, np.abs(a).max())
        np.testing.assert_allclose(b, a, rtol=0, atol=atol, err_msg=str(path))


QUICK = ("dynamic", "em", "kmeans", "self", "heinsen")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in sorted(set(ROUTINGS) - set(QUICK))]


@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_every_algorithm_gives_the_values_and_gradients_of_one_device(name, x64):
    # Two passes: one from the initial state, and one whose state has a gradient.
    routing = make_routing(name, **({"iterations": 2} if "iterations" in options_of(name) else {}))
    inputs = arrays(routing)
    wanted = value_and_gradients(routing, inputs, "naive")
    assert_same(value_and_gradients(routing, inputs, shards()), wanted)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_learned_parameters_under_every_gradient(gradient, x64):
    routing = make_routing("dynamic", iterations=2, prior="learned", bias=True)
    inputs = arrays(routing)
    assert set(inputs[0]) == {"prior", "bias"}
    wanted = value_and_gradients(routing, inputs, "naive", gradient=gradient)
    assert_same(value_and_gradients(routing, inputs, shards(4), gradient=gradient), wanted)


@pytest.mark.parametrize("votes", VOTES)
def test_every_kind_of_votes(votes, x64):
    routing = make_routing("kde", iterations=2)
    inputs = arrays(routing, votes)
    wanted = value_and_gradients(routing, inputs, "naive", votes=votes)
    assert_same(value_and_gradients(routing, inputs, shards(), votes=votes), wanted)


def test_each_device_has_the_votes_of_its_part_alone():
    """The compiled program holds no array with all input capsules of the votes' size."""
    routing = make_routing("em")
    inputs = jax.tree.map(np.float32, arrays(routing))

    def program(implementation):
        def run(*inputs):
            return route(routing, *inputs, implementation=implementation).pose

        return jax.jit(run).lower(*inputs).compile().as_text()

    whole, part = f"f32[{B},{I},{J},{D}]", f"{I // 4},{J},{D}]"
    assert whole in program("naive") or f"f32[{B},{I},{D},{J}]" in program("naive")
    text = program(shards(4))
    assert whole not in text and part in text and "all-reduce" in text


@pytest.mark.parametrize("votes", ["full", "conv"])
def test_parts_of_unequal_size_are_refused(votes):
    routing, devices = make_routing("dynamic"), jax.devices()[:3]
    mesh = jax.make_mesh((3,), ("capsules",), axis_types=(AxisType.Auto,), devices=devices)
    params, u, W, _ = jax.tree.map(np.float32, arrays(routing, votes))
    with pytest.raises(ValueError, match=f"{I} input capsules can't be divided into 3 equal parts"):
        route(routing, params, u, W, votes=votes, implementation=CapsuleShards(mesh, "capsules"))
