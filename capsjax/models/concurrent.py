"""The concurrent schedule: all routed layers of a network take their iterations together."""

from collections.abc import Callable

from capsjax.modules import Capsules
from capsjax.routing import RoutingOutput


def concurrent(
    layers: list,
    x: Capsules,
    passed_on: Callable[[RoutingOutput], Capsules],
    before_last: Callable[[Capsules], Capsules],
) -> RoutingOutput:
    """Route all layers together (Tsai et al. 2020): the poses of a pass are inputs of the next.

    In the first pass layer after layer is computed from the one below. In every later one all
    layers step at once, each from the output that the layer below had after the pass before.

    Args:
      layers: routed capsule layers, lowest first. x: capsules below the first.
      passed_on: what the output of a layer is for the next.
      before_last: what happens to the capsules that the last layer sees.

    Returns:
      The output of the last layer, without couplings.
    """

    def seen(n, outputs):
        below = passed_on(outputs[n - 1]) if n else x
        return below if layers[n + 1 :] else before_last(below)

    states, outputs = [], []
    for n, layer in enumerate(layers):
        u = seen(n, outputs)
        states.append(layer.step(u, layer.start(u), 0))
        outputs.append(layer.output(states[n]))
    for t in range(1, layers[0].routing.passes):
        states = [layer.step(seen(n, outputs), states[n], t) for n, layer in enumerate(layers)]
        outputs = [layer.output(state) for layer, state in zip(layers, states)]
    return outputs[-1]
