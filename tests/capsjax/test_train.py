"""The optimizer, the training step, and its gradient on several devices."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
import reference_routing
from helpers import filled
from jax.sharding import NamedSharding, PartitionSpec
from objective_cases import CAPSNET, CNN, Scores, batch, expected_loss
from small_networks import create_model

from capsjax import (
    Model,
    TrainState,
    adam,
    capsnet_loss,
    cross_entropy_loss,
    init_state,
    make_eval_step,
    make_gradient,
    make_train_step,
    preset,
)

KEY = jax.random.key(0)
BATCH_NORM = dataclasses.replace(CAPSNET, conv_norm="batch", norm_place="after")


@pytest.mark.parametrize(
    "schedule",
    [
        {"rate": 0.1, "decay": 0.5, "decay_steps": 2},
        {"rate": 0.1, "decay": 0.5, "decay_steps": 2, "floor": 0.03},
        {"rate": 0.02, "decay": 1.0},
        {},
    ],
    ids=["decay", "floor", "constant", "default"],
)
def test_adam_equals_reference(schedule):
    names = {"rate": "learning_rate", "decay": "decay_rate"}
    optimizer = adam(**{names.get(name, name): value for name, value in schedule.items()})
    gradients = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    x = jnp.array([1.0, -2.0, 3.0])

    def step(carry, gradient):
        x, state = carry
        updates, state = optimizer.update(gradient, state, x)
        x = optax.apply_updates(x, updates)
        return (x, state), x

    _, got = jax.jit(lambda x: jax.lax.scan(step, (x, optimizer.init(x)), gradients))(x)
    exact = list(reference.adam(np.array([1.0, -2.0, 3.0]), gradients.astype(float), **schedule))
    np.testing.assert_allclose(got, exact, rtol=1e-6, atol=1e-6)
    assert abs(exact[-1] - exact[0]).max() > 1e-3


@pytest.mark.parametrize("options", [{}, {"floor": 0.03, "decay_rate": 0.5, "decay_steps": 2}])
def test_adam_epsilon_hat_is_tensorflows(x64, options):
    """Gradients about as small as epsilon, where the two forms differ."""
    optimizers = [adam(0.1, **options, epsilon_hat=hat) for hat in (True, False)]
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(9, 4)) * np.array([1, 1e-7, 1e-8, 0])
    names = {"decay_rate": "decay"}
    options = {names.get(name, name): value for name, value in options.items()}
    got = []
    for optimizer in optimizers:
        x, state = jnp.zeros(4), optimizer.init(jnp.zeros(4))
        rows = []
        for gradient in gradients:
            updates, state = jax.jit(optimizer.update)(jnp.asarray(gradient), state, x)
            x = optax.apply_updates(x, updates)
            rows.append(x)
        got.append(np.array(rows))
    for result, exact in zip(got, (reference.adam_epsilon_hat, reference.adam)):
        want = np.array(list(exact(np.zeros(4), gradients, 0.1, **options)))
        np.testing.assert_allclose(result, want, rtol=1e-6, atol=1e-9)
    # The first step is the rate times |g| / (|g| + 1e-8 / sqrt(1 - 0.999)).
    size = abs(gradients[0, :3])
    np.testing.assert_allclose(abs(got[0][0, :3]), 0.1 * size / (size + 1e-8 / 0.001**0.5))
    assert got[0][0, 2] / got[1][0, 2] < 0.1


def test_forms_of_adam_have_one_state():
    """Runs of one form can be read by the other."""
    states = [adam(epsilon_hat=hat).init({"w": jnp.ones(2)}) for hat in (True, False)]
    chex.assert_trees_all_equal(*states)


def test_learning_rate_falls_by_4_percent_every_2000_steps():
    """Against a constant gradient, Adam's step is the rate."""
    optimizer = adam()

    def step(state, _):
        update, state = optimizer.update(jnp.ones(()), state)
        return state, -update

    rates = jax.jit(lambda s: jax.lax.scan(step, s, length=4001))(optimizer.init(jnp.ones(())))[1]
    exact = 1e-3 * 0.96 ** np.array([0, 0.5, 1, 2])
    np.testing.assert_allclose(rates[np.array([0, 1000, 2000, 4000])], exact, rtol=1e-4)


def test_spread_margin_grows_with_the_steps():
    """The margin grows from 0.2 at the first step to 0.9 at the last; in evaluation it is 0.9."""
    optimizer = optax.sgd(0.0)
    params = np.array([0.9, 0.85, 0.2], np.float32)
    images, labels = np.zeros((2, 1, 1, 1), np.float32), np.zeros(2, np.int32)
    loss = capsnet_loss(Scores, loss="spread")

    def losses(steps, **options):
        step = make_train_step(loss, optimizer, **options)
        state = init_state(Model(lambda key: jnp.asarray(params), None), optimizer, KEY)
        scan = jax.jit(
            lambda s: jax.lax.scan(lambda s, _: step(s, images, labels, KEY), s, length=steps)
        )
        state, metrics = scan(state)
        assert state.step == steps
        return np.asarray(metrics["spread_loss"])

    def exact(progress):
        return reference_routing.spread_loss(params.astype(float), 0, 0.2 + 0.7 * progress)

    grown = losses(6, total_steps=5)
    np.testing.assert_allclose(grown, [exact(p) for p in (0, 0.2, 0.4, 0.6, 0.8, 1)], rtol=1e-5)
    assert (np.diff(grown) > 0.01).all()
    np.testing.assert_allclose(losses(2), [exact(1)] * 2, rtol=1e-5)
    evaluated = make_eval_step(loss)(params, images, labels)["spread_loss"]
    np.testing.assert_allclose(evaluated, [exact(1)] * 2, rtol=1e-5)


def test_gradient_follows_the_progress():
    scores, label = np.array([0.6, 0.5, 0.2]), 0
    images, labels = np.zeros((1, 1, 1, 1), np.float32), np.array([label])
    gradient = jax.jit(make_gradient(capsnet_loss(Scores, loss="spread")))
    for progress in (0.0, 0.5, 1.0):
        got, _ = gradient(scores.astype(np.float32), images, labels, KEY, progress)
        exact = reference.gradient(
            lambda a, m=0.2 + 0.7 * progress: reference_routing.spread_loss(a, label, m), scores
        )
        assert np.any(exact)
        np.testing.assert_allclose(got, exact, rtol=1e-4)


def test_gradient_of_every_parameter():
    """Compares derivatives along a random direction in each array of parameters with the loops."""
    model = create_model(CAPSNET)
    params = filled(model)
    images, labels = batch(CAPSNET, 2)
    # The reconstruction counts as much as the margin, or its error would go unnoticed.
    loss = capsnet_loss(model, reconstruction_weight=0.1)
    grads, metrics = jax.jit(make_gradient(loss))(params, images, labels, KEY)
    assert all(m.shape == () for m in metrics.values())
    leaves, tree = jax.tree.flatten(params)
    for which, got in enumerate(jax.tree.leaves(grads)):
        direction = np.random.default_rng(which).normal(size=got.shape)

        def mean_loss(leaf, which=which):
            moved = jax.tree.unflatten(tree, leaves[:which] + [leaf] + leaves[which + 1 :])
            pairs = zip(images, labels)
            return np.mean([expected_loss(moved, x, y, 1, 0.1)["loss"] for x, y in pairs])

        exact = reference.derivative(mean_loss, leaves[which].astype(float), direction)
        scale = np.linalg.norm(got) * np.linalg.norm(direction)
        np.testing.assert_allclose(np.sum(got * direction), exact, atol=1e-5 * scale, rtol=1e-4)


@functools.cache
def stepping():
    """Returns an initial state and the compiled step, which fails if it is traced twice."""
    model = create_model(CAPSNET)
    optimizer = adam(0.01)
    chex.clear_trace_counter()
    step = chex.assert_max_traces(make_train_step(capsnet_loss(model), optimizer), n=1)
    state = init_state(model._replace(init=lambda key: filled(model)), optimizer, KEY)
    return state, jax.jit(step)


def test_train_step_applies_gradient_and_optimizer():
    state, step = stepping()
    states, grads = [state], []
    for n in range(3):
        gradient, want = gradients(one_device, states[-1].params)
        after, metrics = step(states[-1], *batch(CAPSNET, 8), KEY)
        assert isinstance(after, TrainState)
        assert after.step == n + 1 and after.step.dtype == jnp.int32
        chex.assert_trees_all_close(metrics, want, rtol=1e-5)
        grads.append(jax.tree.leaves(gradient))
        states.append(jax.device_get(after))
    for leaf, start in enumerate(jax.tree.leaves(state.params)):
        g = np.stack([gradient[leaf] for gradient in grads]).astype(float)
        exact = list(reference.adam(start.astype(float), g, rate=0.01))
        # Adam divides by the gradient: where that is rounding noise, so is the step.
        sure = abs(g).min(axis=0) > 1e-5
        assert sure.any()
        for n in range(3):
            got = jax.tree.leaves(states[n + 1].params)[leaf]
            np.testing.assert_allclose(got[sure], exact[n][sure], atol=1e-5)


def test_training_lowers_the_loss_and_traces_once():
    state, step = stepping()
    losses = []
    for n in range(30):
        images, labels = batch(CAPSNET, 8)
        state, metrics = step(state, images, labels, jax.random.key(n))
        losses.append(float(metrics["loss"]))
    assert state.step == 30
    assert losses[-1] < 0.8 * losses[0]


def test_init_state_uses_the_key():
    model = Model(lambda key: {"w": jax.random.normal(key, (3,))}, None)
    state = init_state(model, adam(), jax.random.key(7))
    np.testing.assert_array_equal(state.params["w"], jax.random.normal(jax.random.key(7), (3,)))


def test_overfits_a_few_images():
    config = preset("capsnet_tiny", image_shape=(20, 20, 1))
    model = create_model(config)
    loss, optimizer = capsnet_loss(model), adam(3e-3)
    images, labels = batch(config, 32)
    step = make_train_step(loss, optimizer)

    @jax.jit
    def train(key):
        state = init_state(model, optimizer, key)
        return jax.lax.scan(lambda s, _: step(s, images, labels, key), state, length=60)

    state, metrics = train(jax.random.key(0, impl="rbg"))  # threefry takes long to compile
    assert metrics["accuracy"][-1] == 1
    assert metrics["margin_loss"][-1] < 0.1 < metrics["margin_loss"][0]


def test_bfloat16_training_keeps_float32_parameters():
    model = create_model(dataclasses.replace(CAPSNET, dtype="bfloat16"))
    gradient = jax.jit(make_gradient(capsnet_loss(model)))
    grads, _ = gradient(filled(model), *batch(CAPSNET, 8), KEY)
    exact, _ = gradients(one_device)
    for half, full in zip(jax.tree.leaves(grads), jax.tree.leaves(exact), strict=True):
        assert half.dtype == jnp.float32
        # 2^-8 per rounding; a dozen roundings through the network and back.
        assert np.linalg.norm(half - full) < 12 * 2**-8 * np.linalg.norm(full)


def test_dropout_only_in_training():
    model = create_model(CNN)
    loss = cross_entropy_loss(model)
    params = filled(model)
    images, labels = batch(CNN, 6)
    gradient = jax.jit(make_gradient(loss))
    one, same, two = (
        gradient(params, images, labels, jax.random.key(seed))[1]["loss"] for seed in (0, 0, 1)
    )
    assert one == same != two
    plain = gradient(params, images, labels, None)[1]["loss"]
    evaluated = jax.jit(make_eval_step(loss))(params, images, labels)["loss"]
    np.testing.assert_allclose(np.mean(evaluated), plain, rtol=1e-5)
    assert abs(plain - one) > 1e-3


@pytest.mark.parametrize("pieces", [1, 2])
def test_empty_batches_are_refused(pieces):
    model = create_model(CNN)
    images, labels = batch(CNN, 2)
    gradient = make_gradient(cross_entropy_loss(model), pieces=pieces)
    with pytest.raises(ValueError, match="no examples"):
        gradient(filled(model), images[:0], labels[:0], KEY)


def test_evaluation_is_per_example():
    model = create_model(CAPSNET)
    evaluate = jax.jit(make_eval_step(capsnet_loss(model)))
    params = filled(model)
    images, labels = batch(CAPSNET, 4)
    together = evaluate(params, images, labels)
    assert all(m.shape == (4,) for m in together.values())
    images[2:] = 0  # as a padded last batch
    padded = evaluate(params, images, labels)
    for name in together:
        np.testing.assert_allclose(padded[name][:2], together[name][:2], rtol=1e-5)


def one_device(gradient):
    return jax.jit(gradient(None))


def compiler(gradient):
    """jit divides the batch; the gradient is written for one device."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    whole, divided = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((), ("data",)))
    return jax.jit(gradient(None), in_shardings=(whole, divided, divided, whole))


def shard_map(gradient, check_vma=False):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    whole, divided = PartitionSpec(), PartitionSpec("data")
    return jax.jit(
        jax.shard_map(
            gradient("data"),
            mesh=mesh,
            in_specs=(whole, divided, divided, whole),
            out_specs=whole,
            check_vma=check_vma,
        )
    )


def pmap(gradient):
    mapped = jax.pmap(gradient("data"), "data", in_axes=(None, 0, 0, None))

    def run(params, images, labels, key):
        parts = (x.reshape(4, -1, *x.shape[1:]) for x in (images, labels))
        out = jax.device_get(mapped(params, *parts, key))
        for leaf in jax.tree.leaves(out):  # all devices hold the same
            np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
        return jax.tree.map(lambda leaf: leaf[0], out)

    return run


@functools.cache
def compiled(strategy, config=CAPSNET):
    loss = capsnet_loss(create_model(config))
    return strategy(lambda axis_name: make_gradient(loss, axis_name=axis_name))


def gradients(strategy, params=None, config=CAPSNET):
    params = filled(create_model(config)) if params is None else params
    return jax.device_get(compiled(strategy, config)(params, *batch(config, 8), KEY))


@pytest.mark.parametrize("strategy", [compiler, shard_map, pmap])
@pytest.mark.parametrize("config", [CAPSNET, BATCH_NORM], ids=["", "batch_norm"])
def test_four_devices_give_the_gradient_of_one(strategy, config):
    """Compares gradients, because Adam's step hides a wrong factor."""
    assert len(jax.devices()) == 4
    exact, want, *stats = gradients(one_device, config=config)
    grads, metrics, *found = gradients(strategy, config=config)
    assert len(found) == (config is BATCH_NORM)
    chex.assert_trees_all_close(found, stats, rtol=1e-5)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(exact), jax.tree.leaves(grads), strict=True
    ):
        assert abs(a).max() > 1e-5
        np.testing.assert_allclose(b, a, atol=1e-5 * abs(a).max(), err_msg=str(path))
    for name in want:
        np.testing.assert_allclose(metrics[name], want[name], rtol=1e-5)


def test_train_step_keeps_the_statistics_of_the_batch():
    model, optimizer = create_model(BATCH_NORM), adam(0.01)
    loss = capsnet_loss(model)
    state = init_state(model._replace(init=lambda key: filled(model)), optimizer, KEY)
    before, images, labels = state.variables, *batch(BATCH_NORM, 8)
    after, metrics = jax.jit(make_train_step(loss, optimizer))(state, images, labels, KEY)

    params = before.params
    y = np.stack([reference.convolution(x, params["conv"]["kernel"]) for x in images])
    y = reference.positive(y + params["conv"]["bias"]).reshape(-1, 3).astype(float)
    new = {"mean": y.mean(0), "var": y.var(0, ddof=1)}
    for name, value in new.items():
        exact = 0.99 * before.state["norms"]["0"][name] + 0.01 * value
        np.testing.assert_allclose(after.stats["norms"]["0"][name], exact, rtol=1e-5)
    assert jax.tree.structure(after.params) == jax.tree.structure(state.opt_state[0].mu)
    chex.assert_trees_all_equal_structs(after.stats, before.state)
    # The loss is that of the batch's own statistics; evaluation takes the running ones.
    losses, _, _ = loss(before, images, labels, train=True)
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-5)
    running = jax.jit(make_eval_step(loss))(before, images, labels)["loss"]
    assert abs(np.mean(running) - metrics["loss"]) > 1e-3


def test_averages_follow_the_parameters():
    """Against a loop in float64, with a decay that grows and one at its limit."""
    model = Model(lambda key: jnp.array([3.0, -1.0]), None)

    def loss(params, images, labels, key, progress):
        return jnp.sum(jnp.square(params))[None], {}

    for most in (0.3, 0.999):
        step = jax.jit(make_train_step(loss, optax.sgd(0.1), ema=most))
        state = init_state(model, optax.sgd(0.1), KEY, average=True)
        plain = init_state(model, optax.sgd(0.1), KEY)
        want = np.float64(state.params)
        for t in range(1, 6):
            state, _ = step(state, None, None, KEY)
            decay = min(most, (1 + t) / (10 + t))
            want = decay * want + (1 - decay) * np.float64([3.0, -1.0]) * 0.8**t
            plain, _ = make_train_step(loss, optax.sgd(0.1))(plain, None, None, KEY)
        np.testing.assert_allclose(state.average, want, rtol=1e-5)
        np.testing.assert_allclose(state.params, plain.params, rtol=1e-6)
        assert plain.average == ()
        with pytest.raises(ValueError, match="ema=0.*, and the state has no average"):
            step(plain, None, None, KEY)
        with pytest.raises(ValueError, match="ema=0.*, and the state has an average"):
            make_train_step(loss, optax.sgd(0.1))(state, None, None, KEY)
