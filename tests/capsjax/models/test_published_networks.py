"""Networks as published: their layers against loops in NumPy, and whether they learn."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import reference_routing as loops
from helpers import as_float64, compiled, filled
from small_networks import create_model, images

from capsjax import (
    PRESETS,
    CapsNetConfig,
    Variables,
    adam,
    capsnet_loss,
    cross_entropy_loss,
    init_state,
    make_train_step,
    preset,
)
from capsjax.models import HVCConfig
from capsjax.models.hvc import HomogeneousCapsules
from capsjax.models.windows import COORDINATES, centres
from capsjax.routing import InputCapsules, Sizes, run_routing
from capsjax.routing.em import em

# Each with few capsules, for small images. Primary capsules at 5x5 positions, 2x2 above them.
SMALL = {
    "image_shape": (13, 13, 1),
    "num_classes": 3,
    "conv_channels": 4,
    "primary_types": 2,
    "primary_pose": 4,
    "class_pose": 4,
    "capsule_layers": ((3, 3, 2),),
    "routing_iterations": 2,
}
HVC = {"image_shape": (8, 9, 1), "num_classes": 3, "convs": ((3, 3), (4, 2)), "branches": (1, 2)}


def small(name):
    config = PRESETS[f"capsnet_{name}"]
    if isinstance(config, HVCConfig):
        changes = HVC if name == "hvc" else HVC | {"branches": (2,)}
        return dataclasses.replace(config, **changes)
    if name == "m5":
        more = {"more_convs": ((6, 3, 1),), "primary_types": 3, "primary_pose": 2}
        return dataclasses.replace(config, image_shape=(14, 14, 1), primary_kernel=6, **more)
    return dataclasses.replace(config, **SMALL)


def batch_norm(x, axis, stats, config, norm=None):
    """Normalizes x for each index of an axis, by its own statistics if there are none."""
    axes = tuple(n for n in range(x.ndim) if n != axis % x.ndim)
    shape = [-1 if n == axis % x.ndim else 1 for n in range(x.ndim)]
    mean = x.mean(axes) if stats is None else stats["mean"]
    var = ((x - mean.reshape(shape)) ** 2).mean(axes) if stats is None else stats["var"]
    y = (x - mean.reshape(shape)) / np.sqrt(var.reshape(shape) + config.norm_epsilon)
    norm = norm or {}
    return y * np.reshape(norm.get("scale", 1.0), (shape if "scale" in norm else ())) + np.reshape(
        norm.get("bias", 0.0), (shape if "bias" in norm else ())
    )


def in_float64(config, count=2):
    model = create_model(dataclasses.replace(config, dtype="float64"))
    variables = as_float64(filled(model))
    return model, variables, as_float64(images(count, config.image_shape))


def run(model, variables, x, train):
    """Returns the output as in training or in evaluation, and the new statistics or None."""
    apply = functools.partial(model.apply, train=train)
    found = compiled(apply, variables, x)(variables, x)
    return found if train else (found, None)


def vb_network(params, stats, x, config):
    """Returns poses and scores of the network of Ribeiro et al., layer by layer over the batch."""
    own = stats or {}

    def norm(x, path, axis=-1, norm=None):
        found = functools.reduce(lambda tree, key: tree[key], path, own) if stats else None
        return batch_norm(x, axis, found, config, norm)

    p, primary = params, params["primary"]
    y = np.stack([reference.convolution(one, p["conv"]["kernel"], config.conv_stride) for one in x])
    y = np.maximum(norm(y, ("norms", "0"), -1, p["norms"]["0"]), 0)
    u = np.einsum("bhwc,co->bhwo", y, primary["conv"]["kernel"][0, 0])
    a = np.einsum("bhwc,co->bhwo", y, primary["present"]["kernel"][0, 0])
    (B, H, W, T), K = a.shape, config.primary_pose
    u = norm(u.reshape(B, H, W, T, K), ("primary", "norms", "0"), 3, primary["norms"]["0"])
    a = 1 / (1 + np.exp(-norm(a, ("primary", "norms", "1"), 3, primary["norms"]["1"])))
    layers = [*(p["layers"][str(n)] for n in range(len(config.capsule_layers))), p["classes"]]
    for n, layer in enumerate(layers):
        last, side = n + 1 == len(layers), u.shape[1]
        kernel, stride = (side, 1) if last else config.capsule_layers[n][1:]
        m, logit = [], []
        for one, activation in zip(u, a):
            seen, index = loops.patches(one, kernel, stride)
            W = np.concatenate([layer["kernel"]] * (side * side)) if last else layer["kernel"]
            votes = np.array([loops.matrix_votes(s, W) for s in seen])
            if last:
                for i, (row, column, _) in enumerate(np.ndindex(*one.shape[:3])):
                    votes[0, i, :, 1] += (row + 1) / (10 * side)
                    votes[0, i, :, 3] += (column + 1) / (10 * side)
            found = vb_posterior(votes, activation.ravel()[index], index, config.routing_iterations)
            m.append(np.array([q.m for q in found]))
            betas = layer["beta_a"] - layer["beta_u"]
            logit.append(np.array([vb_logit(q) + betas for q in found]))
        m, logit = np.array(m), np.array(logit)  # [B, P, J, D]
        m, logit = (
            norm(m, ("layer_norms", str(2 * n)), 2),
            norm(logit, ("layer_norms", str(2 * n + 1)), 2),
        )
        out = int(np.sqrt(m.shape[1]))
        u, a = (
            m.reshape(B, out, out, *m.shape[2:]),
            (1 / (1 + np.exp(-logit))).reshape(B, out, out, -1),
        )
    return u[:, 0, 0], a[:, 0, 0]


def vb_posterior(votes, a, index, iterations):
    P, n, J, _ = votes.shape
    r = np.full((P, n, J), 1 / J)
    for t in range(iterations):
        q = [loops.vb_parents(votes[p], a[p], r[p]) for p in range(P)]
        if t + 1 < iterations:
            logits = np.array([loops.vb_logits(votes[p], q[p]) for p in range(P)])
            r = loops.field_softmax(logits, index)
    return q


def vb_logit(q):
    """The weighted negative entropy, without normalization over the capsules."""
    H = 0.5 * q.m.shape[1] * np.log(2 * np.pi * np.e) - 0.5 * q.ln_det
    return -np.exp(q.ln_pi) * H


@pytest.mark.parametrize("train", [False, True], ids=["evaluation", "training"])
def test_vb_network_equals_reference(train, x64):
    model, variables, x = in_float64(small("vb"))
    config = dataclasses.replace(small("vb"), dtype="float64")
    out, state = run(model, variables, x, train)
    pose, scores = vb_network(variables.params, None if train else variables.state, x, config)
    np.testing.assert_allclose(out.pose, pose, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(out.scores, scores, rtol=1e-7)
    assert abs(scores[0] - scores[1]).max() > 1e-3
    if train:  # the running means of the class capsules, momentum 0.9
        before, after = variables.state["layer_norms"]["2"], state["layer_norms"]["2"]
        assert abs(after["mean"] - before["mean"]).max() > 1e-3


def hvc_network(params, stats, x, config):
    """Returns the logits of Byerly et al., with a branch after some convolutions."""

    def norm(x, own, found):
        return batch_norm(x, -1, found, config, own)

    numbers = list(map(str, range(9)))
    none = {"norms": dict.fromkeys(numbers), "merge_norm": None}
    stats = stats or none | {"heads": dict.fromkeys(numbers, {"norm": None})}
    y, lengths = 2 * x - 1, []
    for n in range(len(config.convs)):
        y = np.stack([reference.convolution(one, params["convs"][str(n)]["kernel"]) for one in y])
        y = np.maximum(norm(y, params["norms"][str(n)], stats["norms"][str(n)]), 0)
        if n + 1 not in config.branches:
            continue
        head, own = params["heads"][str(len(lengths))], stats["heads"][str(len(lengths))]
        B, H, W, C = y.shape
        s = np.zeros((B, config.num_classes, head["kernel"].shape[2]))
        for b, j, h, w, c in np.ndindex(B, config.num_classes, H, W, C):
            i, d = (c, h * W + w) if config.capsules == "channels" else (h * W + w, c)
            s[b, j, d] += y[b, h, w, c] * head["kernel"][i, j, d]
        v = np.maximum(norm(s, head["norm"], own["norm"]), 0)
        lengths.append(np.sqrt((v * v).sum(-1)))
    merged = np.stack(lengths, -1) * params.get("shares", 1.0)
    return norm(merged, params["merge_norm"], stats["merge_norm"]).sum(-1)


@pytest.mark.parametrize("train", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"capsules": "positions", "norm_scale": True, "merge": "learned"}],
    ids=["published", "positions"],
)
def test_homogeneous_vector_capsules_equal_reference(changes, train, x64):
    config = dataclasses.replace(small("hvc"), **changes)
    model, variables, x = in_float64(config)
    out, _ = run(model, variables, x, train)
    exact = hvc_network(variables.params, None if train else variables.state, x, config)
    np.testing.assert_allclose(out.scores, exact, rtol=1e-6, atol=1e-6)
    assert abs(exact[0] - exact[1]).max() > 1e-3 and out.pose is None


def test_heads_and_sizes_of_homogeneous_capsules_are_checked():
    with pytest.raises(ValueError, match="channels, positions, not 'types'"):
        HomogeneousCapsules((2, 2), 3, 4, capsules="types", rngs=None)
    for changes, message in [
        ({"merge": "sum"}, "even, learned"),
        ({"branches": (10,)}, "each of .* follows a convolution"),
        ({"image_shape": (18, 28, 1)}, "smallest image is 19x19"),
    ]:
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(HVCConfig(), **changes)


@pytest.mark.parametrize("classes", [False, True], ids=["capsules", "classes"])
def test_em_with_the_constants_of_the_authors_code(classes, x64):
    """The equations as they stand in that code, for one layer without positions."""
    rng = np.random.default_rng(0)
    votes, a = rng.normal(size=(7, 3, 4)), rng.uniform(0.1, 1, 7)
    routing = em(3, constants="hinton_classes" if classes else "hinton")
    start = routing.init_params(jax.random.key(0), Sizes(7, 3, 4, 4))
    b_a, b_u = (1.0, 2.0) if classes else (0.5, 0.5)
    np.testing.assert_allclose(start["beta_a"], -b_a * np.ones(3))
    np.testing.assert_allclose(start["beta_u"], b_u * np.ones(3))
    out = run_routing(routing, start, InputCapsules(votes, votes[:, 0], a))
    r, centre = np.full((7, 3), 1 / 3), np.zeros((3, 4))
    for t in range(3):
        beta = (0.0025 if classes else 0.01) * (1 - 0.95 ** (t + 1))
        weight = r * a[:, None]
        mass = weight.sum(0)
        centre = 0.9 * np.einsum("ij,ijd->jd", weight, votes) / mass[:, None] + 0.1 * centre
        noise = (votes - centre) ** 2
        var = 0.0005 + np.einsum("ij,ijd->jd", weight, noise) / mass[:, None]
        win = mass * (-np.log(var).sum(1) - b_u * 4 * (np.log(2 * np.pi) + 1))
        logit = beta * (win - b_a * 5000)
        prior = -np.log1p(np.exp(-logit)) - (4 * np.log(2 * np.pi) + np.log(var).sum(1)) / 2
        prior = prior - (noise / (2 * var)).sum(-1)
        r = np.exp(prior) / np.exp(prior).sum(1, keepdims=True)
    np.testing.assert_allclose(out.pose, centre, rtol=1e-6)
    np.testing.assert_allclose(out.activation, 1 / (1 + np.exp(-logit)), rtol=1e-5)


def test_betas_of_gritzman_are_drawn_as_in_his_code():
    betas = em(constants="gritzman").init_params(jax.random.key(0), Sizes(9, 4000, 16, 16))
    low, high = float(betas["beta_a"].min()), float(betas["beta_a"].max())
    assert -2000 <= low < -1950 and -50 < high <= 0  # cut at two deviations of 500
    np.testing.assert_allclose(np.mean(betas["beta_a"]), -1000, atol=30)
    assert 0.95 < abs(betas["beta_u"]).max() / np.sqrt(6 / 4001) <= 1
    with pytest.raises(ValueError, match="default, gritzman, hinton"):
        em(constants="ibm")


@pytest.mark.parametrize(
    "name, grid, rows",
    [
        ("matrix", (14, 14), [-0.08, -0.04, 0.0, 0.04]),
        ("gritzman", (16, 16), [0.1, 0.3, 0.5, 0.7, 0.9]),
        ("vb", (14, 14), [0.025, 0.05, 0.075, 0.1]),
    ],
)
def test_coordinates_of_the_published_networks(name, grid, rows):
    """By hand: centres of receptive fields at pixels 8, 12, 16 and 20 of 32; 5 and 4 rows."""
    config = PRESETS[f"capsnet_{name}"]
    assert config.primary_grid == grid
    made = COORDINATES[config.coordinates](centres(config.windows, len(rows)), 32)
    np.testing.assert_allclose(made, rows, atol=1e-12)
    model = create_model(dataclasses.replace(config, num_classes=2))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((1, *config.image_shape), jnp.float32)
    votes = jax.eval_shape(functools.partial(model.apply, method="votes"), shapes, x)
    assert votes.shape[1] == len(rows) ** 2 * config.capsule_layers[-1][0]


def test_images_are_normalized_over_the_batch(x64):
    model, variables, x = in_float64(small("gritzman"), 3)
    plain = create_model(dataclasses.replace(small("gritzman"), input_norm="none", dtype="float64"))
    y = (x - x.mean()) / np.sqrt(x.var() + 1e-3)
    out, state = run(model, variables, x, True)
    alone = compiled(plain.apply, variables.params, y)(variables.params, y)
    np.testing.assert_allclose(out.scores, alone.scores, rtol=1e-8)
    before = variables.state["input_norm"]["mean"]
    after = 0.999 * before + 0.001 * x.mean()
    np.testing.assert_allclose(state["input_norm"]["mean"], after, rtol=1e-9)


@pytest.mark.parametrize(
    "name, layer, deviation, largest",
    [
        ("matrix", ("conv", "kernel"), 0.88 * 0.05, 0.1),
        ("matrix", ("primary", "present", "kernel"), 0.88 * 3, 6),
        ("matrix", ("layers", "0", "kernel"), 0.88 * 0.3, 0.6),
        ("matrix", ("classes", "kernel"), 0.88 * 0.01, 0.02),
        ("gritzman", ("layers", "1", "kernel"), 0.88, 2),
        ("gritzman", ("conv", "bias"), 0.0088, 0.02),
        # sqrt(6 / (fan-in + fan-out)) of 9 squares, 16 components, 16 types in and 16 out
        ("vb", ("layers", "1", "kernel"), None, np.sqrt(6 / (9 * 16 * (16 + 16)))),
        ("vb", ("classes", "kernel"), None, np.sqrt(6 / (16 * (16 + 5)))),
        ("vb", ("conv", "kernel"), None, np.sqrt(6 / (25 * 2))),
        ("hvc", ("convs", "8", "kernel"), 0.05, None),
    ],
)
def test_initial_weights_are_those_of_the_authors_code(name, layer, deviation, largest):
    params = initial(name)
    weights = np.asarray(functools.reduce(lambda tree, key: tree[key], layer, params))
    if deviation is None:  # uniform
        deviation = largest / np.sqrt(3)
    many = weights.size > 1000
    np.testing.assert_allclose(weights.std(), deviation, rtol=0.05 if many else 0.25)
    if largest is not None:
        assert (0.97 if many else 0.7) * largest < abs(weights).max() <= largest * (1 + 1e-6)


@functools.cache
def initial(name):
    model = create_model(PRESETS[f"capsnet_{name}"])
    variables = jax.jit(model.init)(jax.random.key(0))
    return variables.params if isinstance(variables, Variables) else variables


def losses(config, x, labels, steps, rate):
    """Trains on one batch; returns the losses of the steps, and the states before and after."""
    model = create_model(config)
    loss = cross_entropy_loss(model)
    if isinstance(config, CapsNetConfig):
        traits = config.make_routing().traits
        loss = capsnet_loss(model, loss=traits.loss, logit=traits.scores_are_logits)
    optimizer = adam(rate)
    first = state = init_state(model, optimizer, jax.random.key(0))
    # So many that the margin of the spread loss stays as it is at the start.
    step = jax.jit(make_train_step(loss, optimizer, total_steps=10**9))
    found = []
    for n in range(steps):
        state, metrics = step(state, x, labels, jax.random.key(n))
        found.append(float(metrics["loss"]))
    jax.jit(model.apply)(state.variables, x)
    return found, first, state


def patterns(config, count):
    """Returns noisy images of a pattern for each class, and labels."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % config.num_classes
    x = rng.uniform(size=(config.num_classes, *config.image_shape))[labels]
    return (x + 0.1 * rng.normal(size=x.shape)).astype(np.float32), labels


@pytest.mark.parametrize("name", ["vb", "hvc"])
@pytest.mark.slow
def test_small_published_networks_learn_and_keep_statistics(name):
    config = small(name)
    x, labels = patterns(config, 12)
    found, first, last = losses(config, x, labels, 20, 1e-2)
    assert found[-1] < 0.95 * found[0] and np.isfinite(found).all()
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), first.stats, last.stats)
    assert min(jax.tree.leaves(moved)) > 1e-6
    model = create_model(config)
    together = model.apply(last.variables, x).scores
    alone = model.apply(last.variables, x[:2]).scores  # statistics do not depend on the batch
    np.testing.assert_allclose(alone, together[:2], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, rate",
    [
        ("matrix", 1e-2),
        ("matrix_small", 1e-2),
        ("gritzman", 3e-3),
        ("vb", 1e-3),
        ("hvc", 1e-3),
        ("m5", 1e-3),
        ("m5_hvc", 1e-3),
    ],
)
def test_published_networks_learn_with_the_published_rate(name, rate):
    config = preset(f"capsnet_{name}")
    found, *_ = losses(config, *patterns(config, 10), 12, rate)
    assert min(found[-3:]) < found[0] and np.isfinite(found).all()
