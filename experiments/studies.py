"""Studies as data: flags, and the values that they take."""

from capsjax.routing import ROUTINGS

STUDIES: dict[str, dict[str, tuple[str, ...]]] = {
    # The zoo, the dynamic network first because the frozen one takes its couplings.
    "routing": {"routing": tuple(ROUTINGS), "seed": ("0", "1", "2")},
    # Routed capsule layers of --preset=deep.
    "depth": {
        "preset": ("deep",),
        "routing": ("dynamic", "uniform", "kmeans", "inverted", "self", "em", "vb"),
        "depth": ("1", "4"),
    },
    # Why mixture models fail in four layers: short poses, or competition among random votes.
    "deep_mixtures": {
        "preset": ("deep",),
        "routing": ("em", "vb"),
        "routing_iterations": ("1", "2"),
        "pose_norm": ("auto", "none"),
    },
    # What a squash does to a stack.
    "deep_squash": {
        "preset": ("deep",),
        "routing": ("dynamic", "uniform"),
        "squash": ("paper", "half", "exponential"),
    },
    # Learning from few examples, of all classes alike, in as many steps.
    "data_efficiency": {
        "train_examples": ("10", "30", "100", "300", "1000", "3000", "10000"),
        "model": ("capsnet", "cnn"),
        "steps": ("2000",),
        "log_every": ("100",),
        "seed": ("0", "1", "2"),
    },
}
