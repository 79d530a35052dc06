"""Flags of the optimization: optimizer, schedule, which weights are reported, when a run ends."""

import dataclasses

from capsjax.models import PRESETS, CapsNetConfig
from capsjax.optimizers import OPTIMIZERS, RATE_SCHEDULES
from capsjax.recipes import RECIPES
from experiments import UserError
from experiments.config.flags import setting


@dataclasses.dataclass(frozen=True)
class Optimization:
    """The settings of the optimization; the defaults are those of the paper."""

    learning_rate: float = setting(
        1e-3, "highest learning rate", low=0.0, roles="numeric fits_couplings"
    )
    decay_rate: float = setting(
        0.96, "factor by which the learning rate decays", low=0.0, high=1.0, roles="numeric"
    )
    decay_steps: int = setting(
        2000,
        "number of steps in which the learning rate decays by --decay_rate",
        low=1,
        roles="numeric",
    )
    learning_rate_floor: float | None = setting(
        None, "smallest learning rate", low=0.0, by="recipe", roles="numeric"
    )
    adam_epsilon_hat: bool | None = setting(
        None, "Adam with the epsilon of TensorFlow", by="recipe"
    )
    schedule: str = setting(
        "exponential",
        "schedule of the learning rate. exponential: --decay_rate in every --decay_steps. cosine: "
        "half a cosine over the run, down to zero. one_cycle: half a cosine up and another down. "
        "constant: none. None goes below --learning_rate_floor",
        choices=tuple(RATE_SCHEDULES),
        roles="later",
    )
    warmup_steps: int = setting(
        0,
        "number of steps in which the learning rate rises first, linearly from 0; with "
        "--schedule=one_cycle 0 means three tenths of the run",
        low=0,
        roles="later",
    )
    optimizer: str = setting(
        "adam",
        "optimizer, with the defaults of Optax; sgd has a momentum of 0.9",
        choices=tuple(OPTIMIZERS),
        roles="later",
    )
    weight_decay: float = setting(
        0.0,
        "factor of the weight decay, apart from the gradient in adamw, lamb and lion, and added to "
        "it in the others",
        low=0.0,
        roles="later",
    )
    clip_norm: float = setting(
        0.0,
        "norm of the whole gradient above which it is scaled down; 0: never",
        low=0.0,
        roles="later",
    )
    label_smoothing: float = setting(
        0.0,
        "share of the target that all classes divide among them, in training with cross-entropy",
        low=0.0,
        high=0.99,
        roles="later",
    )
    ema: float = setting(
        0.0,
        "decay of averaged weights, which are validated and reported in place of the last ones; "
        "0: none",
        low=0.0,
        high=0.999999,
        roles="later",
    )
    keep: str = setting(
        "last",
        "which weights are reported. last: those after the last step. best: those with the "
        "smallest validation error",
        choices=("last", "best"),
        roles="later",
    )
    early_stopping: int = setting(
        0,
        "stop after this number of validations in succession without a smaller error or, at an "
        "equal error, a smaller loss; 0: never",
        low=0,
        roles="later",
    )
    max_minutes: float = setting(
        0.0,
        "minutes of training after which the run stops at a checkpoint, to be continued by the "
        "same command; 0: no limit",
        low=0.0,
        roles="free neutral path later",
    )


def check_optimization(config) -> None:
    """Checks flags that contradict each other, in a (resolved) configuration.

    Raises:
      UserError: label smoothing does not apply to the loss, or a decay to the schedule.
    """
    own = config.adam_epsilon_hat and not RECIPES[config.recipe]["adam_epsilon_hat"]
    if own and config.optimizer != "adam":
        raise UserError(f"--adam_epsilon_hat applies to --optimizer=adam, not {config.optimizer}")
    if config.schedule != "exponential":
        for name in ("decay_rate", "decay_steps"):
            if getattr(config, name) != getattr(Optimization, name):
                raise UserError(
                    f"--{name} applies to --schedule=exponential, not to {config.schedule}"
                )
    network = PRESETS.get(f"{config.model}_{config.preset}")
    loss = config.loss if isinstance(network, CapsNetConfig) else "cross_entropy"
    if config.label_smoothing and loss != "cross_entropy":
        raise UserError(
            f"--label_smoothing={config.label_smoothing:g} applies to cross-entropy, not to "
            f"--loss={loss}: use --loss=cross_entropy"
        )
