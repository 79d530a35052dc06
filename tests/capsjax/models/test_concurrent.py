"""Concurrent routing of all layers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import reference_routing as loops
from helpers import as_float64, compiled, filled
from small_networks import DEEP, LAYERS, TINY, images, in_float64, primary_capsules, seen

from capsjax import (
    create_model,
)


def inverted_attention(params, u, iterations):
    """Tsai et al. (2020), section 3.2, concurrent routing; scores and poses.

    Every layer is computed once from the one below. Then, in each of the other iterations, all
    layers take the poses of both the layer below and their own from the iteration before.
    """
    layers = [params["layers"]["0"], params["layers"]["1"], params["classes"]]

    def layer_poses(number, inputs, own):
        p, out = layers[number], []
        if number < 2:
            patches = seen(inputs, *LAYERS[number][1:])
        else:
            patches = inputs[None]
        for position, patch in enumerate(patches):
            votes = reference.prediction_vectors(patch, p["kernel"])
            n, J, D = votes.shape
            c = np.full((n, J), 1 / J)
            if own is not None:
                mine = own[position * J : (position + 1) * J]
                c = reference.over_parents(reference.agreement(votes, mine) / np.sqrt(D))
            s = reference.weighted_sum(c, votes)
            out += [loops.normalized(s[j]) * p["scale"] + p["offset"] for j in range(J)]
        return np.array(out)

    poses = [u]
    for number in range(3):
        poses.append(layer_poses(number, poses[-1], None))
    for _ in range(iterations - 1):
        poses = [u] + [layer_poses(n, poses[n], poses[n + 1]) for n in range(3)]
    p = layers[-1]
    return poses[-1] @ p["readout"] + p["readout_offset"], poses[-1]


def test_concurrent_schedule_equals_reference(x64):
    config = dataclasses.replace(DEEP, routing="inverted", routing_schedule="concurrent")
    model, params, x = in_float64(config, 1)
    direction = as_float64(filled(model, 1))
    a, b = np.random.default_rng(0).normal(size=(2, 3))

    def loss(params):
        out = model.apply(params, x)
        return jnp.sum(a * out.scores[0]) + jnp.sum(b[:, None] * out.pose[0]), out

    gradient, out = compiled(jax.grad(loss, has_aux=True), params)(params)

    def exact(params):
        return inverted_attention(params, primary_capsules(params, x[0], 3), 3)

    scores, pose = exact(params)
    np.testing.assert_allclose(out.scores[0], scores, rtol=1e-9)
    np.testing.assert_allclose(out.pose[0], pose, rtol=1e-9)

    def along(t):
        scores, pose = exact(jax.tree.map(lambda p, d: p + t * d, params, direction))
        return np.sum(a * scores) + np.sum(b[:, None] * pose)

    got = sum(jax.tree.leaves(jax.tree.map(lambda g, d: np.sum(g * d), gradient, direction)))
    np.testing.assert_allclose(got, reference.derivative(along, 0.0, 1.0), rtol=1e-8)
    # What it is not: layer after layer.
    other = create_model(dataclasses.replace(config, routing_schedule="sequential"))
    difference = compiled(other.apply, params, x)(params, x).scores - out.scores
    assert abs(np.asarray(difference)).max() > 1e-3


@pytest.mark.parametrize("routing", ["dynamic", "em"])
def test_schedules_agree_for_one_layer(routing):
    config = dataclasses.replace(TINY, routing=routing, decoder=None)
    models = [
        create_model(dataclasses.replace(config, routing_schedule=schedule))
        for schedule in ("sequential", "concurrent")
    ]
    params, x = filled(models[0]), images()

    def both(params, x):
        return [model.apply(params, x)[:2] for model in models]

    exact, got = compiled(both, params, x)(params, x)
    np.testing.assert_allclose(got[0], exact[0], rtol=1e-5)
    np.testing.assert_allclose(got[1], exact[1], rtol=1e-5, atol=1e-6)
