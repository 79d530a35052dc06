"""The Flax NNX module of capsules that are coupled by routing.

Modules own parameters and call the equations on a batch. They hold no random state, so that
:mod:`capsjax.functional` can treat them as pure functions of their variables.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import nnx

from capsjax.capsules import Capsules, as_capsules
from capsjax.plain_layers import Initializer
from capsjax.routing import (
    CapsuleShards,
    InputCapsules,
    PassKernels,
    Routing,
    RoutingOutput,
    Sizes,
    dynamic,
    initial_routing_state,
    make_routing,
    route,
    routing_pass,
)
from capsjax.routing.base import GRADIENTS, check_choice
from capsjax.routing.engine import IMPLEMENTATIONS
from capsjax.routing.initialization import NORMAL, initial_votes
from capsjax.routing.passes import hold_constants
from capsjax.votes import VOTES


class RoutedCapsules(nnx.Module):
    """A capsule layer whose inputs are coupled to its outputs by routing.

    Args:
      capsules_in: number I of input capsules.
      pose_in: pose size K of an input capsule.
      capsules_out: number J of output capsules.
      pose_out: pose size D of an output capsule.
      routing: the algorithm or its name, by default dynamic routing with three iterations.
      votes: name of the map from poses to votes, a key of :data:`capsjax.votes.VOTES`.
      types: number T of capsule types, for votes whose parameters are shared by type.
      gradient: see :func:`capsjax.routing.route`.
      implementation: see :func:`capsjax.routing.route`.
      kernel_init: initializer of the parameters of the votes, ``[I, J, D, K]`` for full votes. Its
        numbers are multiplied by ``init_scale`` of :class:`capsjax.routing.RoutingTraits`, which is
        1 for most algorithms and 10 / sqrt(K) for ``em`` and ``vb``, unless votes are matrices.
        None: normal, of standard deviation 0.1, with a factor on the sum of the votes that gives
        the output capsules the lengths that they have in the paper's network
        (:mod:`capsjax.routing.initialization`).
      identity: whether the identity is added to the initial parameters of matrix votes.
      tolerance: how many times too long or too short the sum may be before it gets that factor.
        None: one, and no factor with a ``kernel_init``.
      dtype: type in which votes are multiplied; sums are accumulated in float32.
      rngs: source of the initial parameters.

    Raises:
      ValueError: the sizes do not fit the votes, or a name is unknown.
    """

    def __init__(
        self,
        capsules_in: int,
        pose_in: int,
        capsules_out: int,
        pose_out: int,
        *,
        routing: Routing | str | None = None,
        votes: str = "full",
        types: int = 1,
        gradient: str = "full",
        implementation: str | PassKernels | CapsuleShards = "auto",
        kernel_init: Initializer | None = None,
        identity: bool = True,
        tolerance: float | None = None,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        routing = make_routing(routing) if isinstance(routing, str) else routing or dynamic()
        check_choice("votes", votes, VOTES)
        check_choice("gradient", gradient, GRADIENTS)
        if isinstance(implementation, str):
            check_choice("implementation", implementation, IMPLEMENTATIONS)
        sizes = Sizes(capsules_in, capsules_out, pose_out, pose_in)
        shape = VOTES[votes].shape(*sizes, types)
        key = rngs.params()
        gain = 1.0 if VOTES[votes].near_identity else routing.traits.init_scale(sizes)
        if tolerance is None and kernel_init is None:
            tolerance = 1.0
        if routing.for_sizes is not None:
            made = None
            if tolerance is not None:
                options = {"gain": gain, "tolerance": tolerance, "identity": identity}
                made = initial_votes(sizes, votes, types, **options)
            routing = routing.for_sizes(sizes, made)
        kernel = gain * (kernel_init or NORMAL)(key, shape, jnp.float32)
        if VOTES[votes].near_identity and identity:
            kernel += jnp.eye(shape[-1], dtype=kernel.dtype)[None, None]
        self.kernel = nnx.Param(kernel)
        params = routing.init_params(jax.random.fold_in(key, 1), sizes)
        for name, value in params.items():
            setattr(self, name, nnx.Param(value.astype(jnp.float32)))
        self.names, self.routing, self.votes, self.dtype = tuple(params), routing, votes, dtype
        self.options = {"gradient": gradient, "implementation": implementation}

    def __call__(self, x: Capsules | chex.Array, *, trace: bool = False) -> RoutingOutput:
        """Route a batch of capsules.

        Args:
          x: poses ``[B, I, K]`` and activations ``[B, I]``, or an array of poses alone, whose
            activations are their lengths.
          trace: see :func:`capsjax.routing.route`.

        Returns:
          The output of the routing with a first axis B.

        Raises:
          TypeError: the input is something else.
        """
        x = as_capsules(x)
        u, W = x.pose.astype(self.dtype), self.kernel[...].astype(self.dtype)
        options = self.options | {"votes": self.votes, "trace": trace}
        return route(self.routing, self.params(), u, W, x.activation, **options)

    def params(self) -> dict[str, jax.Array]:
        """Collect the parameters of the routing by name."""
        return {name: getattr(self, name)[...] for name in self.names}

    # The methods below make single passes, for networks whose layers are routed together.

    def input_capsules(self, x: Capsules) -> InputCapsules:
        """Compute the votes of a batch of input capsules."""
        chex.assert_equal_shape_prefix([x.pose, x.activation], 2)
        W = self.kernel[...].astype(self.dtype)
        votes = jax.vmap(VOTES[self.votes].function, (0, None))(x.pose.astype(self.dtype), W)
        return InputCapsules(votes, x.pose.astype(votes.dtype), x.activation.astype(votes.dtype))

    def start(self, x: Capsules) -> Any:
        """Make the state before the first pass."""
        params = hold_constants(self.routing, self.params())
        return jax.vmap(lambda one: initial_routing_state(self.routing, params, one))(
            self.input_capsules(x)
        )

    def step(self, x: Capsules, state: Any, t: int) -> Any:
        """Make pass t, counted from 0, and return the state after it."""
        params = hold_constants(self.routing, self.params())
        return jax.vmap(lambda one, state: routing_pass(self.routing, params, one, state, t)[0])(
            self.input_capsules(x), state
        )

    def output(self, state: Any) -> RoutingOutput:
        """Compute the poses and activations of a state."""
        return RoutingOutput(*jax.vmap(self.routing.finalize, (None, 0))(self.params(), state))
