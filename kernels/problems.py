"""Named problem shapes, shared by tests, benchmarks and ahead-of-time compilation."""

import dataclasses

import jax

from capsjax.routing import RoutingOutput, dynamic, route

SEED = 0  # of the random arrays


@dataclasses.dataclass(frozen=True)
class Problem:
    """Shapes of a routed capsule layer: u ``[B, I, K]``, W ``[I, J, D, K]``."""

    B: int  # batch
    I: int  # input capsules
    J: int  # output capsules
    D: int = 16  # pose size of an output capsule
    K: int = 8  # pose size of an input capsule
    normalizer: str = "softmax"
    prior: bool = False  # initial logits [I, J] are given

    @property
    def votes_bytes(self) -> int:
        """The memory of the votes ``[B, I, J, D]`` in float32."""
        return 4 * self.B * self.I * self.J * self.D

    def arrays(self, dtype="float32", seed: int = SEED) -> dict[str, jax.Array]:
        """Returns random u, W and, if any, prior; u is as long as squashed capsules are."""
        keys = jax.random.split(jax.random.key(seed), 3)
        u = 0.2 * jax.random.normal(keys[0], (self.B, self.I, self.K), "float32")
        W = 0.1 * jax.random.normal(keys[1], (self.I, self.J, self.D, self.K), "float32")
        out = {"u": u.astype(dtype), "W": W.astype(dtype)}
        if self.prior:
            out["prior"] = 0.5 * jax.random.normal(keys[2], (self.I, self.J), "float32")
        return out

    def specs(self, dtype="float32") -> dict[str, jax.ShapeDtypeStruct]:
        """Returns shapes and types of :meth:`arrays`."""
        return jax.eval_shape(lambda: self.arrays(dtype))

    def route(self, arrays: dict, iterations: int = 3, **options) -> RoutingOutput:
        """Routes :meth:`arrays`, to which ``bias`` ``[J, D]`` may be added, dynamically.

        ``options`` are those of :func:`capsjax.routing.route`.
        """
        params = {name: arrays[name] for name in ("prior", "bias") if name in arrays}
        prior = "learned" if "prior" in params else "zeros"
        bias = "bias" in params
        routing = dynamic(iterations, normalizer=self.normalizer, prior=prior, bias=bias)
        return route(routing, params, arrays["u"], arrays["W"], **options)


PROBLEMS = {
    # The paper's networks at its batch size.
    "mnist_b128": Problem(B=128, I=1152, J=10),
    "multimnist_b128": Problem(B=128, I=3200, J=10),
    "cifar_b128": Problem(B=128, I=9216, J=10, normalizer="leaky"),
    # Inference of one image, and a batch that fills a large accelerator.
    "mnist_b1": Problem(B=1, I=1152, J=10),
    "mnist_b1024": Problem(B=1024, I=1152, J=10),
    # Small enough for interpreters and float64 references.
    "tiny": Problem(B=8, I=16, J=3, D=4, K=4),
    "ragged": Problem(B=5, I=13, J=7, D=6, K=3, normalizer="leaky", prior=True),
    "one_output": Problem(B=3, I=9, J=1, D=16, K=8, normalizer="leaky"),
    "one_example": Problem(B=1, I=20, J=5, D=16, K=8, prior=True),
    "one_input": Problem(B=2, I=1, J=4, D=8, K=3, prior=True),
    "d8": Problem(B=6, I=40, J=4, D=8, K=16),
    "two_blocks": Problem(B=130, I=33, J=3, D=8, K=8, prior=True),
}
SMALL = ("tiny", "ragged", "one_output", "one_example", "one_input", "d8", "two_blocks")
