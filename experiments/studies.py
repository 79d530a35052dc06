"""Studies as data: flags, and the values that they take."""

from capsjax.routing import ROUTINGS

STUDIES: dict[str, dict[str, tuple[str, ...]]] = {
    # The zoo, the dynamic network first because the frozen one takes its couplings.
    "routing": {"routing": tuple(ROUTINGS), "seed": ("0", "1", "2")},
    # Routed capsule layers of --preset=deep.
    "depth": {
        "routing": ("dynamic", "uniform", "inverted", "em", "self"),
        "squash": ("paper", "exponential"),
        "depth": ("1", "2", "3", "4"),
    },
}
