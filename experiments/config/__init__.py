"""What a command line means: flags, the configuration that they give, and errors."""

from experiments import UserError
from experiments.config.experiment import Config
from experiments.config.flags import later_defaults, names_of, setting
from experiments.config.network import (
    choose_input_norm,
    command,
    continuation,
    given_flags,
    network_config,
    resolve,
    small_kernels,
)

__all__ = [
    "Config",
    "UserError",
    "choose_input_norm",
    "command",
    "continuation",
    "given_flags",
    "later_defaults",
    "names_of",
    "network_config",
    "resolve",
    "setting",
    "small_kernels",
]
