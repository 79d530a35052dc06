"""Which weights of a network are divided together with the input capsules of its class capsules."""

from typing import Any

import jax
from jax.sharding import PartitionSpec

from capsjax.models.capsnet_config import CapsNetConfig
from capsjax.models.cnn import CNNConfig
from capsjax.models.hvc import HVCConfig
from capsjax.models.resnet import ResNetConfig
from capsjax.routing import CapsuleShards
from capsjax.votes import VOTES


def weight_specs(config: CapsNetConfig | CNNConfig | HVCConfig | ResNetConfig, tree: Any) -> Any:
    """Return how each leaf of a pytree is divided among devices.

    Weights between the input capsules and the class capsules are divided along their first axis,
    that of the input capsules, if ``config.routing_implementation`` is
    :class:`~capsjax.routing.CapsuleShards`. Votes that share weights among input capsules, and all
    other leaves, are whole.

    Args:
      config: of the network.
      tree: its parameters, or a pytree with such in it, as a :class:`capsjax.TrainState`.

    Returns:
      A pytree of the same form, of :class:`jax.sharding.PartitionSpec`.

    Example:
      >>> import jax
      >>> from capsjax import create_model, preset
      >>> mesh = jax.make_mesh((1,), ("capsules",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> shards = CapsuleShards(mesh, "capsules")
      >>> config = preset("capsnet_tiny", routing_implementation=shards)
      >>> params = jax.eval_shape(create_model(config).init, jax.random.key(0))
      >>> specs = weight_specs(config, params)
      >>> specs["classes"]["kernel"], specs["conv"]["kernel"]
      (P('capsules',), P())
    """
    shards, names = getattr(config, "routing_implementation", None), ()
    if isinstance(shards, CapsuleShards):
        names = config.make_routing().input_params
        names += ("kernel",) if VOTES[config.votes].per_input_capsule else ()

    def of(path, _):
        layer, name = (getattr(key, "key", None) for key in (None, None, *path)[-2:])
        divided = layer == "classes" and name in names
        return PartitionSpec(shards.axis) if divided else PartitionSpec()

    return jax.tree_util.tree_map_with_path(of, tree)
