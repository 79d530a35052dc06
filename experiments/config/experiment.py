"""The configuration of a training run: the flags that every training command has."""

import dataclasses
import zlib
from pathlib import Path

from capsjax.models import PRESETS
from capsjax.models.capsnet_config import POSE_NORMS, SCHEDULES
from capsjax.objectives import LOSSES
from capsjax.recipes import RECIPES
from capsjax.routing import GRADIENTS, ROUTINGS
from capsjax.squash import SQUASHES
from capsjax.votes import VOTES
from experiments.config.flags import names_of, setting
from kernels.api import IMPLEMENTATIONS

PRESET_NAMES = tuple(dict.fromkeys(name.split("_", 1)[1] for name in PRESETS))


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides what a run does."""

    program: str = dataclasses.field(default="mnist", metadata={"flag": False})

    # Data
    dataset: str = setting(
        "auto",
        "auto (MNIST where it can be had, otherwise digits), digits (scikit-learn's), any "
        "image-classification name of TensorFlow Datasets, or arrays of your own: PATH.npz with "
        "train_images, train_labels, test_images, test_labels and perhaps class_names",
    )
    data_dir: str = setting("", "prepared TensorFlow Datasets directory", free=True, path=True)
    cache_dir: str = setting(
        "",
        "decoded data sets and compiled programs; the user's cache folder by default, "
        "'none' to keep no compiled programs",
        free=True,
        path=True,
    )
    validation_fraction: float = setting(
        0.05, "share of the training data held out for validation", low=0.0, high=0.9
    )
    train_examples: int = setting(
        0, "train on so many examples, as many of each class as can be; 0: all", low=0
    )
    max_shift: int = setting(2, "largest random shift of training images, in pixels", low=0)

    # Network
    model: str = setting("capsnet", "network", choices=("capsnet", "cnn"))
    preset: str = setting("mnist", "size of the network", choices=PRESET_NAMES)
    routing: str | None = setting(
        None,
        "routing algorithm. " + ". ".join(f"{n}: {line}" for n, (_, line) in ROUTINGS.items()),
        choices=tuple(ROUTINGS),
        by="preset",
        capsules=True,
        fits_couplings=True,
    )
    routing_iterations: int | None = setting(
        None,
        "routing iterations, of algorithms that iterate",
        low=1,
        high=1000,
        by="preset",
        capsules=True,
    )
    routing_prior: str = setting(
        "zeros", "first logits of routing", choices=("zeros", "learned"), capsules=True
    )
    routing_schedule: str = setting(
        "sequential",
        "concurrent: all capsule layers in every iteration",
        choices=SCHEDULES,
        capsules=True,
    )
    routing_gradient: str = setting("full", "what is differentiated in routing", choices=GRADIENTS)
    routing_implementation: str = setting(
        "auto",
        "how routing is computed. naive: votes in memory. stream: tile by tile. pallas: kernels "
        "for TPU and NVIDIA GPU. auto: the best that runs. pallas_interpret: for tests",
        choices=IMPLEMENTATIONS,
        fits_couplings=True,
    )
    frozen_from: str = setting(
        "",
        "folder of a finished --routing=dynamic run whose mean couplings --routing=frozen takes; "
        "by default where the same command with --routing=dynamic keeps it",
        capsules=True,
        neutral=True,
        fits_couplings=True,
    )
    votes: str | None = setting(
        None, "how capsules vote for classes", choices=tuple(VOTES), by="preset", capsules=True
    )
    squash: str | None = setting(
        None,
        "squash of capsules. auto: paper, for primary ones none where the routing's paper has none",
        choices=("auto", *SQUASHES),
        by="preset",
        capsules=True,
    )
    pose_norm: str = setting(
        "auto",
        "of poses between routed layers. auto: by their root mean square, where they are means of "
        "votes. none: never",
        choices=POSE_NORMS,
        capsules=True,
    )
    primary_types: int = setting(
        0, "types of primary capsules; 0: the preset's", low=0, capsules=True
    )
    primary_pose: int = setting(
        0, "pose size of primary capsules; 0: the preset's", low=0, capsules=True
    )
    class_pose: int = setting(
        0,
        "pose size of later capsules; 0: the preset's, or what the votes demand",
        low=0,
        capsules=True,
    )
    depth: int = setting(
        0,
        "routed capsule layers of --preset=deep or matrix; 0: all of the preset's",
        low=0,
        capsules=True,
    )
    reconstruction: bool = setting(True, "decoder and reconstruction loss")
    dtype: str = setting(
        "float32", "type of convolutions and votes", choices=("float32", "bfloat16")
    )

    # Recipe, and the switches that it sets
    recipe: str = setting(
        "paper",
        "paper: the text. official: the authors' code. Sets the flags whose default is 'recipe'",
        choices=tuple(RECIPES),
    )
    init: str | None = setting(None, "initial weights", choices=("lecun", "official"), by="recipe")
    routing_bias: bool | None = setting(None, "learned bias of s_j", by="recipe")
    primary_scale: float | None = setting(None, "factor on primary pre-activations", by="recipe")
    margin_weight: float | None = setting(
        None, "weight of the loss of class scores", low=0.0, by="recipe", numeric=True
    )
    learning_rate_floor: float | None = setting(
        None, "smallest learning rate", low=0.0, by="recipe", numeric=True
    )

    # Training
    loss: str = setting(
        "auto",
        "of the class scores. auto: the routing's own",
        choices=("auto", *LOSSES),
        capsules=True,
        fits_couplings=True,
    )
    epochs: int = setting(
        0, "passes over the training data; 0: 10 for digits, else 50", low=0, free=True
    )
    steps: int = setting(0, "training steps instead of epochs", low=0, free=True)
    batch_size: int = setting(
        0, "images a step, over all devices; 0: 64 for digits, else 128", low=0
    )
    learning_rate: float = setting(
        1e-3, "Adam's first learning rate", low=0.0, numeric=True, fits_couplings=True
    )
    decay_rate: float = setting(
        0.96, "the learning rate is multiplied by this", low=0.0, high=1.0, numeric=True
    )
    decay_steps: int = setting(2000, "once every so many steps (continuously)", low=1, numeric=True)
    reconstruction_weight: float = setting(
        0.0005, "weight of the summed squared reconstruction error", low=0.0, numeric=True
    )
    seed: int = setting(0, "of everything random", low=0, high=2**32 - 1, fits_couplings=True)

    # Machine
    accelerator: str = setting(
        "auto",
        "where to compute",
        choices=("auto", "cpu", "gpu", "tpu"),
        free=True,
        neutral=True,
        local=True,
    )
    parallel: str = setting(
        "jit",
        "how devices share a batch",
        choices=("jit", "shard_map", "pmap"),
        free=True,
        neutral=True,
        local=True,
    )
    num_devices: int = setting(
        0,
        "devices to use; 0: all (on CPU one; more are simulated)",
        low=0,
        free=True,
        neutral=True,
        local=True,
    )

    # Output
    workdir: str = setting(
        "", "where the run is kept; by default under runs/", free=True, path=True
    )
    diagnostics: bool = setting(
        False,
        "measure and draw routing: entropy, change of logits, dead capsules",
        free=True,
        capsules=True,
        neutral=True,
    )
    profile: int = setting(
        0,
        "after the first --log_every steps trace so many, for TensorBoard or Perfetto, into the "
        "run's folder",
        low=0,
        free=True,
        neutral=True,
    )
    validate_every: int = setting(
        0, "validate and save after so many steps; 0: after each epoch", low=0, free=True
    )
    log_every: int = setting(
        10, "steps between two lines of metrics.jsonl", low=1, free=True, neutral=True
    )

    def identity(self) -> dict:
        """Returns the fields that two runs must share to be the same run."""
        free = names_of(self, "free")
        return {name: value for name, value in vars(self).items() if name not in free}

    def default_workdir(self) -> str:
        """Returns ``runs/NAME-...``, the same for the same (resolved) configuration."""
        code = zlib.crc32(repr(sorted(self.identity().items())).encode())
        dataset = Path(self.dataset).stem if self.dataset.endswith(".npz") else self.dataset
        return f"runs/{self.program}-{dataset}-{self.model}-{code:08x}"

    def folder(self) -> Path:
        """Returns the folder of the run: ``--workdir``, or else :meth:`default_workdir`."""
        return Path(self.workdir or self.default_workdir())
