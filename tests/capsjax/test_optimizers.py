"""Schedules of the learning rate against closed forms, optimizers against NumPy loops."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from capsjax import OPTIMIZERS, RATE_SCHEDULES, adam, make_optimizer, make_schedule

STEPS = np.arange(0, 45)


def exponential(t, n, w):
    return 0.5 * 0.9 ** ((t - w) / 7)


def cosine(t, n, w):
    return 0.25 * (1 + np.cos(np.pi * min(t - w, n - w) / (n - w)))


def one_cycle(t, n, w):
    top = w or int(0.3 * n)

    def between(start, end, share):
        return end + (start - end) / 2 * (np.cos(np.pi * min(share, 1)) + 1)

    if t < top:
        return between(0.02, 0.5, t / top)
    return between(0.5, 0.02 / 1e4, (t - top) / (n - top))


CLOSED = {
    "exponential": exponential,
    "cosine": cosine,
    "one_cycle": one_cycle,
    "constant": lambda t, n, w: 0.5,
}


@pytest.mark.parametrize("warmup", [0, 8])
@pytest.mark.parametrize("name", RATE_SCHEDULES)
def test_schedules_are_their_closed_forms(name, warmup):
    arguments = {"total_steps": 40, "warmup_steps": warmup, "decay_rate": 0.9, "decay_steps": 7}
    want = [CLOSED[name](t, 40, warmup) for t in STEPS]
    if warmup and name != "one_cycle":
        want[:warmup] = [0.5 * t / warmup for t in range(warmup)]
    for floor in (0.0, 0.1):
        rate = jax.jit(jax.vmap(make_schedule(name, 0.5, floor=floor, **arguments)))
        np.testing.assert_allclose(rate(STEPS), np.maximum(want, floor), rtol=2e-5, atol=1e-7)


def test_the_rate_of_a_schedule_may_be_traced():
    for name in RATE_SCHEDULES:

        def rate(highest, floor, name=name):
            return make_schedule(name, highest, total_steps=9, warmup_steps=3, floor=floor)(5)

        got = jax.jit(rate)(0.3, 0.01)
        np.testing.assert_allclose(got, rate(0.3, 0.01), rtol=1e-5)


def test_schedules_over_the_run_need_its_length():
    for name, by_length in RATE_SCHEDULES.items():
        if by_length:
            with pytest.raises(ValueError, match="needs more steps"):
                make_schedule(name, 0.1)
            with pytest.raises(ValueError, match="needs more steps"):
                make_schedule(name, 0.1, total_steps=5, warmup_steps=5)
    with pytest.raises(ValueError, match="schedule"):
        make_schedule("linear", 0.1)
    with pytest.raises(ValueError, match="optimizer"):
        make_optimizer("adm", optax.constant_schedule(0.1))


def test_adam_is_the_optimizer_with_the_exponential_schedule():
    one = adam(0.1, 0.5, 3, 0.02)
    rate = make_schedule("exponential", 0.1, decay_rate=0.5, decay_steps=3, floor=0.02)
    two = make_optimizer("adam", rate)
    np.testing.assert_array_equal(*(descend(o, *random_problem()) for o in (one, two)))


def random_problem(shape=(3, 4), steps=5):
    rng = np.random.default_rng(0)
    return rng.normal(size=shape).astype("f4"), rng.normal(size=(steps, *shape)).astype("f4")


def descend(optimizer, x, gradients):
    x, state = jnp.asarray(x), optimizer.init(jnp.asarray(x))
    for g in gradients:
        updates, state = optimizer.update(jnp.asarray(g), state, x)
        x = optax.apply_updates(x, updates)
    return x


def adam_direction(m, v, g, t):
    m[...] = 0.9 * m + 0.1 * g
    v[...] = 0.999 * v + 0.001 * g * g
    return m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)


def numpy_descend(name, x, gradients, rate, decay, clip):
    """Loops over steps in float64, each optimizer as its paper has it."""
    x = np.float64(x)
    m, v = np.zeros_like(x), np.zeros_like(x)
    for t, g in enumerate(np.float64(gradients), 1):
        if clip:
            g = g * min(1.0, clip / np.sqrt(np.sum(g * g)))
        if name == "sgd":
            m = 0.9 * m + g + decay * x
            x = x - rate * m
        elif name == "adam":
            x = x - rate * adam_direction(m, v, g + decay * x, t)
        elif name == "adamw":
            x = x - rate * (adam_direction(m, v, g, t) + decay * x)
        elif name == "lamb":
            step = adam_direction(m, v, g, t) + decay * x
            x = x - rate * np.linalg.norm(x) / np.linalg.norm(step) * step
        elif name == "lion":
            x = x - rate * (np.sign(0.9 * m + 0.1 * g) + decay * x)
            m = 0.99 * m + 0.01 * g
        elif name == "rmsprop":
            g = g + decay * x
            v = 0.9 * v + 0.1 * g * g
            x = x - rate * g / np.sqrt(v + 1e-8)
        else:
            raise KeyError(name)
    return x


@pytest.mark.parametrize("decay, clip", [(0.0, 0.0), (0.3, 1.5)])
@pytest.mark.parametrize("name", ["adam", "adamw", "lamb", "lion", "rmsprop", "sgd"])
def test_optimizers_are_numpy_loops(name, decay, clip):
    x, gradients = random_problem()
    made = make_optimizer(name, optax.constant_schedule(0.05), weight_decay=decay, clip_norm=clip)
    want = numpy_descend(name, x, gradients, 0.05, decay, clip)
    np.testing.assert_allclose(descend(made, x, gradients), want, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_members_of_an_ensemble_are_optimized_as_if_alone(name):
    x, gradients = random_problem((2, 3, 4))
    arguments = {"weight_decay": 0.1, "clip_norm": 0.7}
    rate = optax.constant_schedule(0.05)
    with jax.numpy_dtype_promotion("standard"):  # which radam needs
        together = descend(make_optimizer(name, rate, members=2, **arguments), x, gradients)
        one = make_optimizer(name, rate, **arguments)
        alone = [descend(one, x[n], gradients[:, n]) for n in range(2)]
    for n in range(2):
        np.testing.assert_allclose(together[n], alone[n], rtol=1e-5, atol=1e-6)


def test_a_short_cycle_rises_too():
    """Of two steps or more, the first one has a 25th of the highest rate."""
    for total in (2, 3, 4, 10):
        schedule = make_schedule("one_cycle", 0.5, total_steps=total)
        rates = [float(schedule(step)) for step in range(total)]
        np.testing.assert_allclose([rates[0], max(rates)], [0.5 / 25, 0.5], rtol=1e-6)


@pytest.mark.parametrize("kind", [jnp.bfloat16, jnp.float32, jnp.float64], ids=str)
def test_updates_have_the_type_of_the_gradients(kind, x64):
    optimizer = adam(epsilon_hat=True)
    params = {"w": jnp.ones(3, kind)}
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimizer.update({"w": jnp.ones(3, kind)}, optimizer.init(params), params)
    assert updates["w"].dtype == kind
