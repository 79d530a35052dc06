"""The line that says what is trained, on what, with which versions."""

import flax
import jax

from capsjax.models import CapsNetConfig
from experiments.config import small_kernels
from experiments.data.stored_images import StoredImages
from experiments.tasks.base import Setup
from experiments.training.setup import steps_per_epoch, total_steps

FEW_STEPS = 100  # in which hardly any network learns anything


def banner(setup: Setup) -> str:
    """Returns device, versions, network and data in one line.

    Further lines say which kernels are smaller than those of the preset, and that a run is short
    because its batches are large for the data.
    """
    c, d = setup.config, setup.dataset
    device, more = setup.devices[0], (small_kernels(c, setup.model_config), _short(setup))
    read = ", read by Grain" if isinstance(d.train_images, StoredImages) else ""
    line = (
        f"capsjax {c.program} | {len(setup.devices)} x {device.device_kind} ({device.platform}), "
        f"JAX {jax.__version__}, Flax {flax.__version__} | {describe_network(setup)}, "
        f"{setup.parameters:,} parameters, recipe {c.recipe} | "
        f"{d.name}: {len(d.train_labels):,} training, {len(d.validation_labels):,} validation, "
        f"{len(d.test_labels):,} test images{read}"
    )
    return "\n".join(filter(None, (line, *more)))


def _short(setup: Setup) -> str:
    """Returns a line about a run of few steps, unless they or few epochs were asked for."""
    c, total, per_epoch = setup.config, total_steps(setup), steps_per_epoch(setup)
    if c.steps or total >= FEW_STEPS or per_epoch >= c.epochs:
        return ""
    return (
        f"the whole run is {total} steps: an epoch of {len(setup.dataset.train_labels)} images has "
        f"{per_epoch} of --batch_size={c.batch_size}; smaller batches or more --epochs train longer"
    )


def describe_network(setup: Setup) -> str:
    """Returns the network in a few words."""
    m = setup.model_config
    return f"capsnet, {m.routing} routing" if isinstance(m, CapsNetConfig) else setup.config.model
