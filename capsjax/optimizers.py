"""Optimizers and schedules of the learning rate, by name."""

import types
from collections.abc import Callable, Mapping

import chex
import jax
import jax.numpy as jnp
import optax

from capsjax.routing import check_choice

# The schedules by name, and whether they depend on the number of steps of the training run.
RATE_SCHEDULES: Mapping[str, bool] = types.MappingProxyType(
    {"exponential": False, "cosine": True, "one_cycle": True, "constant": False}
)
# Share of a run in which the rate of ``one_cycle`` rises where no warm-up is given.
RISING_SHARE = 0.3

# Optimizers by name: functions of a schedule and of the factor of the weight decay.
OPTIMIZERS: Mapping[str, Callable[..., optax.GradientTransformation]] = types.MappingProxyType(
    {
        "adam": lambda rate, decay: _l2(decay, optax.adam(rate)),
        "adamw": lambda rate, decay: optax.adamw(rate, weight_decay=decay),
        "adabelief": lambda rate, decay: _l2(decay, optax.adabelief(rate)),
        "lamb": lambda rate, decay: optax.lamb(rate, weight_decay=decay),
        "lion": lambda rate, decay: optax.lion(rate, weight_decay=decay),
        "nadam": lambda rate, decay: _l2(decay, optax.nadam(rate)),
        "radam": lambda rate, decay: _l2(decay, optax.radam(rate)),
        "rmsprop": lambda rate, decay: _l2(decay, optax.rmsprop(rate)),
        "sgd": lambda rate, decay: _l2(decay, optax.sgd(rate, momentum=0.9)),
    }
)
# Optimizers that compare norms: of several networks at once they need one state for each.
OF_NORMS = ("lamb",)


def _l2(decay, optimizer):
    return optax.chain(optax.add_decayed_weights(decay), optimizer) if decay else optimizer


def make_schedule(
    name: str,
    learning_rate: chex.Numeric,
    *,
    total_steps: int | None = None,
    warmup_steps: int = 0,
    decay_rate: chex.Numeric = 0.96,
    decay_steps: chex.Numeric = 2000,
    floor: chex.Numeric = 0.0,
) -> optax.Schedule:
    r"""Make a schedule of the learning rate.

    After t steps of n, of which w are warm-up, with the highest rate :math:`\eta`:

    - ``constant``: :math:`\eta`;
    - ``exponential``: :math:`\eta\, r^{(t - w)/T}`, the paper's;
    - ``cosine``: :math:`\eta\, (1 + \cos(\pi (t - w) / (n - w))) / 2` (Loshchilov & Hutter 2017);
    - ``one_cycle``: from :math:`\eta / 25` along half a cosine up to :math:`\eta` in w steps, or
      in three tenths of the run without a warm-up, then down to :math:`\eta / 250000` (Smith &
      Topin 2017, with the numbers of ``optax.cosine_onecycle_schedule``).

    The first three rise linearly from zero in the w steps of the warm-up. No rate is below the
    floor.

    Args:
      name: a key of :data:`RATE_SCHEDULES`.
      learning_rate: eta.
      total_steps: n; ``cosine`` and ``one_cycle`` need it.
      warmup_steps: w.
      decay_rate: r, the factor by which an exponential rate falls in every T steps.
      decay_steps: T, in steps.
      floor: the smallest rate.

    Returns:
      A function of the number of steps done. Rates, r and T may be traced, n and w not.

    Raises:
      ValueError: the name is unknown, or ``total_steps`` is missing or not above the warm-up.

    Example:
      >>> rate = make_schedule("cosine", 0.5, total_steps=6, warmup_steps=2)
      >>> [round(float(rate(t)), 3) for t in range(7)]
      [0.0, 0.25, 0.5, 0.427, 0.25, 0.073, 0.0]
    """
    check_choice("schedule", name, RATE_SCHEDULES)
    if RATE_SCHEDULES[name] and (total_steps is None or total_steps <= warmup_steps):
        raise ValueError(f"schedule {name!r} needs more steps in all than for the warm-up")

    def exponential(step):
        # Not optax.exponential_decay: if decay_rate is one, it makes the floor an upper bound.
        return learning_rate * decay_rate ** (step / decay_steps)

    if name == "exponential" and not warmup_steps:
        return lambda step: jnp.maximum(exponential(step), floor)
    if name == "one_cycle":
        least = 1 if total_steps > 1 else 0
        warmup_steps = warmup_steps or max(int(RISING_SHARE * total_steps), least)
        rise = optax.cosine_decay_schedule(learning_rate / 25, max(warmup_steps, 1), alpha=25.0)
        rate = optax.cosine_decay_schedule(learning_rate, total_steps - warmup_steps, alpha=4e-6)
    elif name == "cosine":
        rate = optax.cosine_decay_schedule(learning_rate, total_steps - warmup_steps)
    else:
        rate = exponential if name == "exponential" else optax.constant_schedule(learning_rate)
    if name != "one_cycle":
        rise = optax.linear_schedule(0.0, learning_rate, max(warmup_steps, 1))
    if warmup_steps:
        rate = optax.join_schedules([rise, rate], [warmup_steps])
    # Optax divides the step by floats, which strict promotion of types allows for floats alone.
    return lambda step: jnp.maximum(rate(jnp.asarray(step, jnp.float32)), floor)


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    weight_decay: float = 0.0,
    clip_norm: float = 0.0,
    epsilon_hat: bool = False,
    members: int = 1,
) -> optax.GradientTransformation:
    """Make an optimizer of Optax.

    Args:
      name: a key of :data:`OPTIMIZERS`.
      schedule: see :func:`make_schedule`.
      weight_decay: factor on the parameters, all of them, also on constants such as the couplings
        of the routing ``random``; :func:`scale_updates` keeps those. ``adamw``, ``lamb`` and
        ``lion`` decay parameters apart from the gradient and times the rate; the others add the
        decay to the gradient.
      clip_norm: the norm of the whole gradient above which it is scaled down; 0: never.
      epsilon_hat: whether ``adam`` has the epsilon of :func:`scale_by_adam_epsilon_hat`.
      members: number of networks whose parameters have a common leading axis. Each has the norms
        of its own.

    Raises:
      ValueError: the name is unknown.
    """
    check_choice("optimizer", name, OPTIMIZERS)
    if epsilon_hat and name == "adam":
        rate = optax.scale_by_learning_rate(schedule)
        optimizer = _l2(weight_decay, optax.chain(scale_by_adam_epsilon_hat(), rate))
    else:
        optimizer = OPTIMIZERS[name](schedule, weight_decay)
    if clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)
    if members > 1 and (clip_norm or name in OF_NORMS):
        return optax.GradientTransformation(jax.vmap(optimizer.init), jax.vmap(optimizer.update))
    return optimizer


def adam(
    learning_rate: float = 1e-3,
    decay_rate: float = 0.96,
    decay_steps: int = 2000,
    floor: float = 0.0,
    *,
    epsilon_hat: bool = False,
) -> optax.GradientTransformation:
    r"""Make Adam with the learning rate :math:`\max(\eta\, r^{t/T}, \eta_{min})` after t steps.

    With the moments m and v of the gradients after t steps, the direction of a step is

    .. math:: \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    Args:
      learning_rate: the initial rate, eta.
      decay_rate: r, the factor by which the rate falls in every T steps.
      decay_steps: T, in steps.
      floor: the smallest rate, eta_min.
      epsilon_hat: whether epsilon is added to the uncorrected :math:`\sqrt v`, as in TensorFlow,
        which the authors' code uses; see :func:`scale_by_adam_epsilon_hat`.
    """

    schedule = make_schedule(
        "exponential",
        learning_rate,
        decay_rate=decay_rate,
        decay_steps=decay_steps,
        floor=floor,
    )
    return make_optimizer("adam", schedule, epsilon_hat=epsilon_hat)


def scale_by_adam_epsilon_hat(
    b1: float = 0.9, b2: float = 0.999, epsilon: float = 1e-8
) -> optax.GradientTransformation:
    r"""Make Adam's direction with the epsilon of TensorFlow.

    .. math:: \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t} \frac{m}{\sqrt v + \hat\epsilon}
              = \frac{m / (1 - \beta_1^t)}
                     {\sqrt{v / (1 - \beta_2^t)} + \hat\epsilon / \sqrt{1 - \beta_2^t}}

    Kingma & Ba, "Adam" (2015), the end of section 2. Compared with ``optax.scale_by_adam``,
    epsilon is 32 times as large in the first step and as large in the end. The state is the same.

    Args:
      b1, b2: factors by which the moments decay.
      epsilon: epsilon hat.
    """

    def update(updates, state, params=None):
        t = jax.lax.convert_element_type(state.count + 1, float)  # of the default precision
        corrected = epsilon / jnp.sqrt(1 - b2**t)
        found, state = optax.scale_by_adam(b1, b2, corrected).update(updates, state, params)
        return jax.tree.map(lambda u, g: u.astype(g.dtype), found, updates), state

    return optax.GradientTransformation(optax.scale_by_adam(b1, b2).init, update)
