"""The line that says what is trained, on what, with which versions."""

import flax
import jax

from capsjax.models import CapsNetConfig
from experiments.config import small_kernels
from experiments.data.stored_images import StoredImages
from experiments.tasks.base import Setup


def banner(setup: Setup) -> str:
    """Returns device, versions, network and data in one line.

    A second line says which kernels are smaller than those of the preset, if there are any.
    """
    c, d = setup.config, setup.dataset
    device, shrunk = setup.devices[0], small_kernels(c, setup.model_config)
    read = ", read by Grain" if isinstance(d.train_images, StoredImages) else ""
    return (
        f"capsjax {c.program} | {len(setup.devices)} x {device.device_kind} ({device.platform}), "
        f"JAX {jax.__version__}, Flax {flax.__version__} | {describe_network(setup)} "
        f"{setup.parameters:,} parameters, recipe {c.recipe} | "
        f"{d.name}: {len(d.train_labels):,} training, {len(d.validation_labels):,} validation, "
        f"{len(d.test_labels):,} test images{read}" + (f"\n{shrunk}" if shrunk else "")
    )


def describe_network(setup: Setup) -> str:
    """Returns the network in a few words."""
    m = setup.model_config
    return f"capsnet, {m.routing} routing," if isinstance(m, CapsNetConfig) else setup.config.model
