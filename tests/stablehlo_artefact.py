"""A small network as StableHLO, and the command that wrote the file with JAX 0.10.

PYTHONPATH=. python tests/stablehlo_artefact.py tests/experiments/exchange/jax_0.10.stablehlo
"""

import sys
from pathlib import Path

import jax
import numpy as np

import capsjax
from experiments.exchange import stablehlo_file
from experiments.exchange.network import Network, Source, make_network

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "tests" / "experiments" / "exchange" / "jax_0.10.stablehlo"
CONFIG = capsjax.CapsNetConfig(
    image_shape=(12, 12, 1),
    num_classes=3,
    conv_channels=4,
    conv_kernel=3,
    primary_types=2,
    primary_pose=4,
    primary_kernel=3,
    class_pose=4,
    routing_iterations=2,
    decoder=None,
)


def made_up_network() -> Network:
    """Returns a network whose weights are cosines, the same with every version."""
    shapes = jax.eval_shape(capsjax.create_model(CONFIG).init, jax.random.key(0))
    leaves, tree = jax.tree.flatten(shapes)
    arrays = [
        np.float32(0.4 * np.cos(n + np.arange(leaf.size)).reshape(leaf.shape))
        for n, leaf in enumerate(leaves)
    ]
    prepare = capsjax.Preprocessing(CONFIG.image_shape)
    weights = jax.tree.unflatten(tree, arrays)
    source = Source("cosines", CONFIG, weights, prepare, ("a", "b", "c"), 1)
    return make_network(source, preprocess=True)


if __name__ == "__main__":
    data = stablehlo_file.to_bytes(made_up_network())
    Path(sys.argv[1]).write_bytes(data)
    print(f"JAX {jax.__version__}, {len(data):,} bytes")
