"""The paths of a network's features as its input images are transformed by known amounts.

The features of an image are the pose of the class capsule of its label; in a network without
capsules they are the inputs of the last layer.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from capsjax import map_batches
from capsjax.models import CapsNetConfig
from experiments.analysis import equivariance_metrics
from experiments.analysis.equivariance_metrics import Examples
from experiments.data.affine import Affine, single_transformation, warp
from experiments.training.evaluate import BATCH, BATCHES

STEPS = 13  # of a path
# Largest amount in both directions: degrees, pixels right per pixel up, log, pixels.
MAX_AMOUNTS = {
    "rotation": 30.0,
    "shear": 0.3,
    "scale": float(np.log(1.25)),
    "shift_x": 3.0,
    "shift_y": 3.0,
}
COMPONENTS = 16  # the size of the paper's poses; longer features are also probed after a PCA
# (images uint8 [N, H, W, C], labels [N], transformations of [N]) -> [N, D]
Features = Callable[[np.ndarray, np.ndarray, Affine], np.ndarray]


def make_features(setup, variables) -> Features:
    """Returns the function that transforms images and computes their features."""
    capsules = isinstance(setup.model_config, CapsNetConfig)

    def some(variables, images, labels, transformations):
        pixels = jax.vmap(warp)(images.astype(jnp.float32), transformations)
        x = jax.vmap(setup.pipeline.input)(pixels)
        if not capsules:
            return setup.model.apply(variables, x, method="features")
        pose = setup.model.apply(variables, x, method="encode").pose
        return jnp.take_along_axis(pose, labels[:, None, None], axis=1)[:, 0]

    @jax.jit
    def many(variables, *batches):
        return jax.lax.map(lambda batch: some(variables, *batch), batches)

    def features(images, labels, transformations):
        def some_batches(examples, count):
            batches = -(-count // BATCH)
            first = jax.tree.map(
                lambda x: x[: batches * BATCH].reshape(batches, BATCH, *x.shape[1:]), examples
            )
            found = np.asarray(many(variables, *first), np.float64)
            return found.reshape(batches * BATCH, -1)

        return map_batches(some_batches, (images, labels, transformations), BATCHES * BATCH)

    return features


def transformations(name: str, amounts: np.ndarray) -> Affine:
    """Returns a transformation for each amount ``[N]``; that of the scale is a logarithm."""
    values = np.exp(amounts) if name == "scale" else amounts
    return jax.tree.map(
        lambda v: np.broadcast_to(np.float32(v), amounts.shape), single_transformation(name, values)
    )


def compute_paths(features: Features, images, labels, name: str, amounts: np.ndarray) -> np.ndarray:
    """Computes the paths ``[N, T, D]`` of all images over the amounts ``[T]``."""
    same = np.ones(len(labels))
    return np.stack(
        [features(images, labels, transformations(name, a * same)) for a in amounts], axis=1
    )


def path_metrics(paths: np.ndarray, amounts: np.ndarray, labels: np.ndarray) -> dict:
    """Computes :mod:`experiments.analysis.equivariance_metrics` of paths.

    The number of dimensions is computed for each class and averaged.
    """
    linear, quadratic = (
        equivariance_metrics.adjusted_r2(paths, amounts, degree) for degree in (1, 2)
    )
    shares = {
        int(n): equivariance_metrics.variance_shares(paths[labels == n]) for n in np.unique(labels)
    }
    change = equivariance_metrics.change(paths, STEPS // 2, labels)
    moving = ~np.isnan(linear)
    rounded = {
        "linear": linear[moving].mean() if moving.any() else None,
        "quadratic": quadratic[moving].mean() if moving.any() else None,
        "still": 1 - moving.mean(),
        "dimensions": np.mean(
            [equivariance_metrics.participation_ratio(s) for s in shares.values()]
        ),
        "length": np.sqrt(np.square(change.length).mean()),
        "direction": np.sqrt(np.square(change.direction).mean()),
    }
    strongest = {
        n: [[int(d), round(float(s[d]), 4)] for d in np.argsort(-s)[:COMPONENTS]]
        for n, s in shares.items()
    }
    return {name: v if v is None else round(float(v), 4) for name, v in rounded.items()} | {
        "amounts": amounts.round(4).tolist(),
        "length_changes": change.length.round(4).tolist(),
        "direction_changes": change.direction.round(4).tolist(),
        "shares": strongest,  # of each class: dimensions and their shares, the greatest first
    }


def mean_path(paths: np.ndarray) -> np.ndarray:
    """Computes the mean change ``[T, D]`` of the features of one class, in standard deviations.

    The unit is the same for all features, the root mean square of their standard deviations:
    relative to its own, a feature that is nearly always zero would seem to change most.
    """
    start = paths[:, STEPS // 2]
    spread = np.sqrt(start.var(axis=0).mean())
    return (paths.mean(axis=0) - start.mean(axis=0)) / (spread or np.inf)


def probe_all(features: Features, train, test) -> dict[str, dict]:
    """Computes R^2 of linear probes of all amounts and of thickness, by class and pooled.

    Args:
      features: of a network.
      train, test: images uint8 ``[N, H, W, C]`` and labels ``[N]``.

    Returns:
      ``probes``, and for features longer than :data:`COMPONENTS` also ``probes_of_components``.
    """
    found = {}
    # The stream of RandomState never changes, see experiments.data.datasets.
    random = np.random.RandomState(20171026)
    for name, largest in (MAX_AMOUNTS | {"thickness": 0.0}).items():
        parts = []
        for images, labels in (train, test):
            amounts = random.uniform(-largest, largest, len(labels))
            t = transformations(name if largest else "rotation", amounts)
            target = amounts if largest else equivariance_metrics.thickness(images)
            parts.append(Examples(features(images, labels, t), target, labels))
        kinds = {"probes": None}
        if parts[0].features.shape[1] > COMPONENTS:
            kinds["probes_of_components"] = COMPONENTS
        for kind, components in kinds.items():
            probe = equivariance_metrics.probe(*parts, components)
            each = {n: round(score, 4) for n, score in probe.per_class.items()}
            found.setdefault(kind, {})[name] = {
                "pooled": round(probe.pooled, 4),
                "per_class": each,
            }
    return found
