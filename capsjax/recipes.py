"""Recipes: the paper's text and the authors' code, where they train differently.

A recipe sets switches of the network and of the training run, each of which can also be set on its
own. ``official`` as the value of a number is the number of the authors' code, which depends on the
network, see :func:`primary_factor` and :func:`margin_factor`.

These differences between the recipe ``official`` and the authors' code have no switch:

- smallNORB: the code changes brightness and contrast before it crops; here crops come first.
- MNIST: the code reads 25 shifts of each image one after another, shuffled in a buffer of 5,000,
  from all 60,000 training images; here every epoch shuffles all images and draws one shift of
  each, and by default 5% of the images are held out for validation.
- The convolutional baseline of the code has 5x5 kernels without padding and is trained by the
  margin loss, applied to its logits; here it is the baseline of the paper's text.
- MultiMNIST: the code tests on 1,000 pairs for each digit; here the pairs are drawn at random.

Neither text nor code has the factor on s_j with which a routed layer starts here, see
:mod:`capsjax.routing.initialization`. It is 1 for the paper's network for MNIST, and with
``official`` for all networks of the paper.
"""

import types
from collections.abc import Mapping
from typing import Any

# Values of the network's configuration (the first three) and of the training run (the others).
# The mappings are read-only: runs share them.
RECIPES: Mapping[str, Mapping[str, Any]] = types.MappingProxyType(
    {
        "paper": types.MappingProxyType(
            {
                "init": "lecun",
                "routing_bias": False,
                "primary_scale": 1.0,
                "margin_weight": 1.0,
                "learning_rate_floor": 0.0,
                "adam_epsilon_hat": False,
            }
        ),
        "official": types.MappingProxyType(
            {
                "init": "official",
                "routing_bias": True,
                "primary_scale": "official",
                "margin_weight": "official",
                "learning_rate_floor": 1e-6,
                "adam_epsilon_hat": True,
            }
        ),
    }
)


def primary_factor(value: float | str, *, types: int, leaky: bool) -> float:
    r"""Returns the factor on the weighted sums of the primary capsules.

    The authors' code computes primary capsules by one pass of routing from one input capsule. Its
    logits are zero, so the sums of each of the T types are multiplied by the share of a type:
    :math:`1 / T`, or :math:`1 / (T + 1)` where routing is leaky.

    Args:
      value: a number, which is returned, or ``official``.
      types: the number T of types of primary capsules.
      leaky: whether the routing of the network is leaky.

    Raises:
      ValueError: ``value`` is another word.

    Example:
      >>> primary_factor("official", types=32, leaky=False)
      0.03125
    """
    _check_word("primary_scale", value)
    return 1 / (types + leaky) if isinstance(value, str) else value


def margin_factor(value: float | str, *, classes: int) -> float:
    r"""Returns the factor on the loss of the class scores.

    The authors' code takes half the margin loss, and its mean over the J classes where the paper
    has a sum: :math:`1 / (2 J)`. The loss of the reconstruction is a sum in both.

    Args:
      value: a number, which is returned, or ``official``.
      classes: the number J of classes.

    Raises:
      ValueError: ``value`` is another word.

    Example:
      >>> margin_factor("official", classes=10)
      0.05
    """
    _check_word("margin_weight", value)
    return 1 / (2 * classes) if isinstance(value, str) else value


def _check_word(name, value):
    if isinstance(value, str) and value != "official":
        raise ValueError(f"{name} must be a number or official, not {value!r}")
