"""What a command line means: flags, the configuration that they give, and errors."""

from experiments import UserError
from experiments.config.experiment import Config
from experiments.config.flags import names_of, setting
from experiments.config.network import (
    command,
    given_flags,
    network_config,
    resolve,
    small_kernels,
)

__all__ = [
    "Config",
    "UserError",
    "command",
    "given_flags",
    "names_of",
    "network_config",
    "resolve",
    "setting",
    "small_kernels",
]
