r"""How a routed layer starts: a factor on the sum of the votes that follows from its sizes.

The initial deviation 0.1 of W was right for one layer, the class capsules of Sabour, Frosst &
Hinton (2017) for MNIST (I = 1152, J = 10, D = 16). With matrices of deviation :math:`\sigma` the
variances of independent votes add up, as in Glorot & Bengio (2010) and He et al. (2015): at even
couplings, whatever K is,

.. math:: E \|s_j\|^2 = c^2 D I \sigma^2 E \|u\|^2, \quad c = 1 / J

With two classes s is five times as long as with ten, where the squash is flat; with a hundred a
tenth as long, where :math:`\|v\| \approx \|s\|^2` and its gradient vanish. Layers multiply it
(Everett et al. 2023, arXiv 2305.11178). Agreement lengthens s once more: a sum of earlier outputs V
changes the couplings by :math:`c' \hat u \cdot V`, with c' the slope of the normalizer, so that

.. math:: s = g (c \sqrt{D I}\, w + c' I w^2 \|V\|), \quad w^2 = \sigma^2 E \|u\|^2

along V. The factor g is chosen so that the length after the last pass is the one that this
prediction gives for the paper's layer, where g = 1. A layer is thus the paper's, or has the paper's
lengths, also with another squash.

Why a factor and not another deviation of W: both give the same lengths, but

- to make up for J = 1000 classes, votes would have to be so long that the first agreement decides
  all couplings: c' I w^2 / g grows with J, and with the factor it does not;
- a step of Adam changes every weight by the learning rate. Over I capsules these changes add up:
  with smaller weights in a large layer the first step already saturates it. Images of two classes
  at 64x64 pixels, and a hundred classes, learned far faster with the factor.

It is a closed form and not a pass over data, so that a layer used alone has it, and a checkpoint
needs nothing else. What it can't know is how long the input capsules are. Of squashed primary
capsules :math:`E \|u\|^2` was 0.09 to 0.20 on black, 0.41 to 0.45 on white and 0.24 to 0.30 on grey
backgrounds, from 17 to 96 pixels and 1 to 12 channels; it counts as 1/4.
"""

import math
import statistics
from collections.abc import Callable

import jax

from capsjax.routing.base import InitialVotes, Sizes
from capsjax.votes import VOTES

SQUARED_LENGTH = 0.25  # of an input capsule, E |u|^2
DEVIATION = 0.1  # of the elements of W
NORMAL = jax.nn.initializers.normal(DEVIATION)
# Share of the squared length of the sum of a type's capsules at all positions that they would have
# if all were equal: 0.25 to 0.95, least on black backgrounds and in large images.
COHERENCE = 0.5
# More passes do not make a layer start with longer capsules.
MOST_PASSES = 3
# The length of a squashed vector as a function of its own, by the name of the squash.
SQUASHED_LENGTHS: dict[str, Callable[[float], float]] = {
    "paper": lambda n: n * n / (1 + n * n),
    "exponential": lambda n: -math.expm1(-n),
    "half": lambda n: n * n / (0.5 + n * n),
    "none": lambda n: n,
}


def initial_votes(
    sizes: Sizes,
    votes: str,
    types: int,
    *,
    gain: float = 1.0,
    tolerance: float = 1.0,
    identity: bool = True,
) -> InitialVotes:
    """Predict the votes of a layer before training.

    Args:
      sizes: of the layer.
      votes: a key of :data:`capsjax.votes.VOTES`.
      types: number T of types of input capsules. Votes of one type at all I / T positions add up
        where they share a matrix, or where all matrices are near the identity.
      gain: factor on the deviation 0.1 of the matrices.
      tolerance: see :class:`InitialVotes`.
      identity: whether the identity is added to matrices that may be near it.
    """
    kind = VOTES[votes]
    square = (gain * DEVIATION) ** 2 * SQUARED_LENGTH
    near_identity = kind.near_identity and identity
    if votes == "elementwise":
        square /= sizes.K
    elif kind.near_identity:  # a component is a sum over a row of the pose
        square /= sizes.K**0.5
    if near_identity:
        square = SQUARED_LENGTH / sizes.K
    together = 1 if kind.per_input_capsule and not near_identity else sizes.I / types
    total = (sizes.D * square * sizes.I * (1 + COHERENCE * (together - 1))) ** 0.5
    return InitialVotes(square**0.5, total, tolerance)


def agreement_length(
    sizes: Sizes,
    votes: InitialVotes,
    scale: float,
    *,
    passes: int,
    squash: str,
    normalizer: str = "softmax",
    competitors: int | None = None,
    query: Callable[[float, float], float] = lambda V, v: V + v,
) -> float:
    """Predict the length of the output capsules of routing by agreement.

    Args:
      sizes, votes: of the layer.
      scale: the factor g.
      passes: the number of passes.
      squash: a key of :data:`SQUASHED_LENGTHS`.
      normalizer: a key of :data:`capsjax.routing.NORMALIZERS`.
      competitors: number of capsules whose couplings sum to one; None: that of output capsules.
      query: ``(|V|, |v|)`` -> the length of V in the next pass.
    """
    V = length = 0.0
    coupling, slope = even_coupling(normalizer, competitors or sizes.J)
    for _ in range(min(passes, MOST_PASSES)):
        if normalizer == "maxmin":
            slope = stretched_slope(sizes, votes, V) if V else 0.0
        loop = slope * sizes.I * votes.deviation**2
        length = SQUASHED_LENGTHS[squash](scale * (coupling * votes.total + loop * V))
        V = query(V, length)
    return length


def usual_length(passes: int, squash: str) -> float:
    """Predict the length of the class capsules of the paper's network for MNIST.

    Args:
      passes: the number of passes.
      squash: a key of :data:`SQUASHED_LENGTHS`. Every bounded one gets the length of the paper's:
        with its sum of the votes, ``exponential`` and ``half`` would start longer, where their
        slope is smaller, and a stack of them would learn far more slowly.
    """
    sizes = Sizes(1152, 10, 16, 8)
    votes = initial_votes(sizes, "full", 1)
    bounded = "none" if squash == "none" else "paper"
    return agreement_length(sizes, votes, 1.0, passes=passes, squash=bounded)


def scale_for(
    predict: Callable[[float], float], votes: InitialVotes | None, *, passes: int, squash: str
) -> float:
    """Find the factor with which a layer starts as the paper's does.

    Args:
      predict: factor -> length of the output capsules, increasing.
      votes: of the layer; None where the caller chose the matrices, and the factor is 1.
      passes, squash: of the layer, for :func:`usual_length`.

    Returns:
      The factor to six digits. It is exactly 1 for the paper's layer, and wherever the right factor
      is within ``votes.tolerance`` of it.
    """
    if votes is None:
        return 1.0
    wanted = usual_length(passes, squash)
    low, high = 1e-9, 1e9
    for _ in range(100):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if predict(middle) < wanted else (low, middle)
    scale = float(f"{low:.6g}")
    return 1.0 if max(scale, 1 / scale) <= votes.tolerance else scale


def even_coupling(normalizer: str, J: int) -> tuple[float, float]:
    """Compute even couplings c of a normalizer and their slope c', by the logit of the same pair.

    Those of ``maxmin`` have no slope: it stretches any logits, however near to each other, to
    the range from 0 to 1, so the couplings are 1/2 on the average after the first pass.
    """
    c = {"leaky": 1 / (J + 1), "sigmoid": 1 / 2, "maxmin": 1 / 2}.get(normalizer, 1 / J)
    if normalizer in ("sparsemax", "entmax"):
        power = {"sparsemax": 0, "entmax": 1 / 2}[normalizer]
        return c, c**power * (1 - 1 / J)
    return c, c * (1 - c)


def stretched_slope(sizes: Sizes, votes: InitialVotes, V: float) -> float:
    """Compute the slope of ``maxmin``: one over the range of J normal logits."""
    J = sizes.J
    spread = 2 * statistics.NormalDist().inv_cdf((J - 0.375) / (J + 0.25)) if J > 1 else 1.0
    return (1 - 1 / J) / max(spread * votes.deviation * V, 1e-30)
