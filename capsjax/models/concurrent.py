"""The concurrent schedule: all routed layers of a network take their passes together."""

from collections.abc import Callable

from capsjax.capsules import Capsules
from capsjax.routing import RoutingOutput


def route_concurrently(
    layers: list,
    x: Capsules,
    to_inputs: Callable[[RoutingOutput], Capsules],
) -> RoutingOutput:
    """Route all layers together (Tsai et al. 2020): the poses of a pass are inputs of the next.

    In the first pass each layer is computed from the one below it, lowest first. In every later
    pass all layers are computed at once, each from the output of the layer below in the pass
    before.

    Args:
      layers: routed capsule layers, lowest first.
      x: the capsules below the first layer.
      to_inputs: maps the output of a layer to the input capsules of the next.

    Returns:
      The output of the last layer, without couplings.
    """

    def inputs(n, outputs):
        return to_inputs(outputs[n - 1]) if n else x

    states, outputs = [], []
    for n, layer in enumerate(layers):
        u = inputs(n, outputs)
        states.append(layer.step(u, layer.start(u), 0))
        outputs.append(layer.output(states[n]))
    for t in range(1, layers[0].routing.passes):
        states = [layer.step(inputs(n, outputs), states[n], t) for n, layer in enumerate(layers)]
        outputs = [layer.output(state) for layer, state in zip(layers, states)]
    return outputs[-1]
