"""Routing algorithms by name. A new one is a function and an entry in this table."""

import difflib
import functools
import inspect
from collections.abc import Callable

from capsjax.routing.attention import inverted, self_attention
from capsjax.routing.base import Routing
from capsjax.routing.dynamic import dynamic, kmeans
from capsjax.routing.em import em
from capsjax.routing.fixed import frozen, random, static, uniform
from capsjax.routing.heinsen import heinsen
from capsjax.routing.kde import kde
from capsjax.routing.self_routing import self_routing
from capsjax.routing.vb import vb


def _dynamic(normalizer: str) -> Callable[..., Routing]:
    return functools.partial(dynamic, normalizer=normalizer, name=normalizer)


# name: (function that returns it, description in one line)
ROUTINGS: dict[str, tuple[Callable[..., Routing], str]] = {
    "dynamic": (dynamic, "routing by agreement, Sabour et al. 2017"),
    "leaky": (_dynamic("leaky"), "dynamic, with one more output, whose share is dropped"),
    "sigmoid": (_dynamic("sigmoid"), "dynamic, output capsules do not compete"),
    "maxmin": (_dynamic("maxmin"), "dynamic, max-min normalized, Zhao et al. 2019"),
    "sparsemax": (_dynamic("sparsemax"), "dynamic, couplings with zeros"),
    "entmax": (_dynamic("entmax"), "dynamic, between softmax and sparsemax"),
    "uniform": (uniform, "no routing: even couplings"),
    "random": (random, "couplings drawn once, never trained"),
    "static": (static, "couplings learned by back-propagation"),
    "frozen": (frozen, "mean couplings of a trained dynamic network"),
    "self": (self_routing, "self-routing, Hahn et al. 2019"),
    "inverted": (inverted, "inverted dot-product attention, Tsai et al. 2020"),
    "self_attention": (self_attention, "Efficient-CapsNet, Mazzia et al. 2021"),
    "em": (em, "EM routing, Hinton et al. 2018"),
    "vb": (vb, "variational Bayes, Ribeiro et al. 2020"),
    "kmeans": (kmeans, "soft k-means by direction"),
    "kde": (kde, "weighted kernel density estimation, Zhang et al. 2018"),
    "heinsen": (heinsen, "credit and blame for predicted inputs, Heinsen 2022"),
}


def make_routing(name: str, **options) -> Routing:
    """Returns a routing algorithm by name.

    Args:
      name: a key of :data:`ROUTINGS`.
      **options: arguments of the function that returns it, see :func:`options_of`.

    Raises:
      ValueError: unknown name (the message suggests the nearest), an option that the algorithm
        does not have, or a wrong value of an option.

    Example:
      >>> make_routing("dynamic", iterations=2, bias=True).passes
      2
    """
    if unknown := set(options) - set(options_of(name)):
        raise ValueError(
            f"routing {name!r} has no option {sorted(unknown)[0]!r}, only "
            f"{', '.join(options_of(name)) or 'none at all'}"
        )
    return ROUTINGS[name][0](**options)


def options_of(name: str) -> tuple[str, ...]:
    """Returns the names of the options of an algorithm.

    Example:
      >>> options_of("kmeans")
      ('iterations', 'squash', 'scale')
    """
    if name not in ROUTINGS:
        near = difflib.get_close_matches(name, ROUTINGS, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"routing must be one of {', '.join(ROUTINGS)}, not {name!r}{hint}")
    function = ROUTINGS[name][0]
    given = {"name", "normalizer"} if isinstance(function, functools.partial) else {"name"}
    return tuple(p for p in inspect.signature(function).parameters if p not in given)
