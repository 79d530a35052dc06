"""Whether an exported network says what the network in JAX says."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from capsjax import map_batches
from experiments.config import UserError
from experiments.exchange.network import Network, random_images

IMAGES = 64
LARGEST = 1e-5  # difference of a number, relative to it where it is above one
BATCH = 128
CLASSES = ("label", "labels", "present")

Runner = Callable[[np.ndarray], dict[str, np.ndarray]]


class Decisions(NamedTuple):
    """A comparison over labelled images."""

    images: int
    different: int  # images on which the named classes differ
    errors: int | None  # of the exported network; None for several classes an image
    difference: float  # the largest of the scores


def reference(network: Network) -> Runner:
    """Returns the network in JAX, compiled for this device in the usual way."""
    apply = jax.jit(network.apply)
    return lambda images: jax.device_get(apply(network.variables, images))


def verify(network: Network, run: Runner) -> float:
    """Compares all outputs on 64 made-up images, together and the first one alone.

    Returns:
      The largest difference, relative to numbers that are above one.

    Raises:
      UserError: it is :data:`LARGEST` or more, an output is missing or has another shape, or a
        named class is not the one with the largest score.
    """
    images, right, worst = random_images(network, IMAGES), reference(network), 0.0
    for some in (images, images[:1]):
        found, wanted = run(some), right(some)
        if found.keys() != wanted.keys():
            raise UserError(f"outputs are {', '.join(found)}, not {', '.join(wanted)}")
        for name, exact in wanted.items():
            if found[name].shape != exact.shape or found[name].dtype != exact.dtype:
                kinds = f"{found[name].dtype} {found[name].shape}"
                raise UserError(f"{name} is {kinds}, not {exact.dtype} {exact.shape}")
            if name not in CLASSES:
                worst = max(worst, difference(found[name], exact))
        # Where two scores are equal but for rounding, JAX may name the other class.
        for name in set(CLASSES) & found.keys():
            if (found[name] != _named(network, found["scores"])).any():
                raise UserError(f"{name}: not the classes of the scores")
    if not worst < LARGEST:
        raise UserError(
            f"outputs differ from those of JAX by {worst:.1e}, more than {LARGEST:g}; nothing is "
            "written"
        )
    return worst


def difference(found: np.ndarray, exact: np.ndarray) -> float:
    """Returns the largest difference, relative to numbers above one; infinite for a NaN."""
    with np.errstate(invalid="ignore"):
        apart = np.abs(found - exact) / np.maximum(np.abs(exact), 1)
    # Equal infinities are no difference.
    apart = np.where(found == exact, 0, apart)
    return float("inf") if np.isnan(apart).any() else float(apart.max(initial=0))


def compare(network: Network, run: Runner, images: np.ndarray, labels: np.ndarray) -> Decisions:
    """Compares decisions on labelled images with those of JAX.

    Args:
      network: what was exported. run: the exported network.
      images: ``[N, H, W, C]``, as the network takes them.
      labels: ``[N]``; with others, errors are not counted.
    """
    right = reference(network)
    size = min(BATCH, len(images))
    pairs = map_batches(
        lambda some, _: (run(np.asarray(some))["scores"], right(some)["scores"]), images, size
    )
    scores, exact = (np.asarray(one) for one in pairs)
    decisions = [_named(network, one).reshape(len(one), -1) for one in (scores, exact)]
    if network.count == 2:  # their order does not matter
        decisions = [np.sort(one, axis=1) for one in decisions]
    different = int((decisions[0] != decisions[1]).any(axis=1).sum())
    errors = None
    if network.count == 1 and labels.ndim == 1:
        errors = int((decisions[0][:, 0] != labels).sum())
    return Decisions(len(images), different, errors, difference(scores, exact))


def _named(network: Network, scores: np.ndarray) -> np.ndarray:
    """Returns what scores ``[N, J]`` name, as the outputs of an exported network do."""
    if network.count is None:
        return scores >= network.threshold
    best = np.argsort(-scores, axis=1, kind="stable")[:, : network.count]
    return best[:, 0] if network.count == 1 else best
