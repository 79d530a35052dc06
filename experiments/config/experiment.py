"""The configuration of a training run: the flags that every training command has."""

import dataclasses
import zlib
from pathlib import Path

from capsjax.models import PRESETS
from capsjax.models.capsnet_config import INITS, POSE_NORMS, SCHEDULES
from capsjax.objectives import LOSSES
from capsjax.recipes import RECIPES
from capsjax.routing import GRADIENTS, IMPLEMENTATIONS, ROUTINGS
from capsjax.squash import SQUASHES
from capsjax.votes import VOTES
from experiments.config.distribution import Distribution
from experiments.config.fine_tuning import FineTuning
from experiments.config.flags import later_defaults, names_of, setting
from experiments.config.optimization import RATE_SCHEDULES, Optimization
from experiments.config.own_images import OwnImages, stem_of
from experiments.config.reading import Reading
from experiments.files import local_path

AUGMENTATIONS = ("auto", "none", "shift", "flip", "affine", "strong")
MACHINE = "free neutral local"  # the roles of what describes where a run is computed
PRESET_NAMES = tuple(dict.fromkeys(name.split("_", 1)[1] for name in PRESETS))


@dataclasses.dataclass(frozen=True)
class Config(FineTuning, Optimization, OwnImages, Reading, Distribution):
    """The settings of a training run; every field with a :func:`setting` is a flag."""

    program: str = dataclasses.field(default="mnist", metadata={"flag": False})

    # Data
    dataset: str = setting(
        "auto",
        "auto (MNIST if it is available, otherwise digits), digits (of scikit-learn), any data "
        "set of TensorFlow Datasets, your own arrays PATH.npz with train_images, train_labels, "
        "test_images, test_labels, or your own images: FOLDER with a folder for each class",
    )
    data_dir: str = setting("", "directory of prepared TensorFlow Datasets", roles="free path")
    cache_dir: str = setting(
        "",
        "folder for decoded data sets and compiled programs; by default the user's cache folder; "
        "'none' keeps no compiled programs",
        roles="free path",
    )
    validation_fraction: float = setting(
        0.05, "fraction of the training data held out for validation", low=0.0, high=0.9
    )
    train_examples: int = setting(
        0, "number of training examples, balanced over classes; 0: all", low=0
    )
    max_shift: int = setting(2, "largest random shift of training images, in pixels", low=0)
    augmentation: str = setting(
        "auto",
        "random changes of training images. auto: those of the command. none. shift: shifts, or "
        "crops where the command crops. flip: these, and half of the images mirrored. affine: "
        "rotation, scale, shear and shift. strong: more of them, and a square erased",
        choices=AUGMENTATIONS,
        roles="later",
    )

    # Network
    model: str = setting("capsnet", "kind of network", choices=("capsnet", "cnn"))
    preset: str = setting("mnist", "named sizes of the network", choices=PRESET_NAMES)
    routing: str | None = setting(
        None,
        "routing algorithm. " + ". ".join(f"{n}: {line}" for n, (_, line) in ROUTINGS.items()),
        choices=tuple(ROUTINGS),
        by="preset",
        roles="capsules fits_couplings",
    )
    routing_iterations: int | None = setting(
        None, "number of routing iterations", low=1, high=1000, by="preset", roles="capsules"
    )
    routing_prior: str = setting(
        "zeros", "initial logits of routing", choices=("zeros", "learned"), roles="capsules"
    )
    routing_schedule: str = setting(
        "sequential",
        "order of computation; concurrent: all capsule layers in every iteration",
        choices=SCHEDULES,
        roles="capsules",
    )
    routing_gradient: str = setting(
        "full", "which part of routing is differentiated", choices=GRADIENTS, roles="capsules"
    )
    routing_implementation: str = setting(
        "auto",
        "how routing is computed. naive: all votes. stream: a tile, or an example, after another. "
        "pallas: kernels for TPU and GPU. auto: the best that runs. pallas_interpret: for tests",
        choices=IMPLEMENTATIONS,
        roles="fits_couplings",
    )
    frozen_from: str = setting(
        "",
        "folder of a finished --routing=dynamic run whose mean couplings --routing=frozen takes; "
        "by default the folder of the same command with --routing=dynamic",
        roles="capsules neutral fits_couplings",
    )
    votes: str | None = setting(
        None,
        "how input capsules vote for class capsules",
        choices=tuple(VOTES),
        by="preset",
        roles="capsules",
    )
    squash: str | None = setting(
        None,
        "squash function of the capsules. auto: that of the paper of the routing, for the primary "
        "capsules, too",
        choices=("auto", *SQUASHES),
        by="preset",
        roles="capsules",
    )
    pose_norm: str | None = setting(
        None,
        "normalization of poses between routed layers. auto: by their root mean square, if poses "
        "are means of votes. none: never. batch: over the batch, with --routing=vb",
        choices=POSE_NORMS,
        by="preset",
        roles="capsules",
    )
    primary_types: int = setting(
        0, "number of primary capsule types; 0: that of the preset", low=0, roles="capsules"
    )
    primary_pose: int = setting(
        0, "pose size of primary capsules; 0: that of the preset", low=0, roles="capsules"
    )
    class_pose: int = setting(
        0,
        "pose size of later capsules; 0: that of the preset or of the votes",
        low=0,
        roles="capsules",
    )
    depth: int = setting(
        0,
        "number of routed capsule layers of presets that have several; 0: all",
        low=0,
        roles="capsules",
    )
    reconstruction: bool = setting(True, "whether there is a decoder and a reconstruction loss")
    dtype: str = setting(
        "float32", "data type of convolutions and votes", choices=("float32", "bfloat16")
    )

    # Recipe, and the switches that it sets
    recipe: str = setting(
        "paper",
        "paper: the text of the paper. official: the authors' code. Sets the flags whose default "
        "is that of the recipe",
        choices=tuple(RECIPES),
    )
    init: str | None = setting(None, "initialization of the weights", choices=INITS, by="recipe")
    routing_bias: bool | None = setting(None, "whether s_j has a learned bias", by="recipe")
    primary_scale: float | str | None = setting(
        None,
        "factor on the pre-activations of primary capsules, or official: 1/T for T types, 1/(T+1) "
        "with leaky routing",
        choices=("official",),
        by="recipe",
    )
    margin_weight: float | str | None = setting(
        None,
        "weight of the loss of the class scores, or official: 1/(2J) for J classes",
        choices=("official",),
        low=0.0,
        by="recipe",
        roles="numeric",
    )
    # Training
    loss: str = setting(
        "auto",
        "loss of the class scores. auto: that of the routing's paper",
        choices=("auto", *LOSSES),
        roles="capsules fits_couplings",
    )
    epochs: int = setting(
        0, "number of epochs; 0: 10 for digits, otherwise 50", low=0, roles="free"
    )
    steps: int = setting(0, "number of training steps, in place of epochs", low=0, roles="free")
    batch_size: int = setting(
        0, "images per step, over all devices; 0: 64 for digits, otherwise 128", low=0
    )
    reconstruction_weight: float = setting(
        0.0005, "weight of the summed squared reconstruction error", low=0.0, roles="numeric"
    )
    seed: int = setting(
        0, "seed of everything random", low=0, high=2**32 - 1, roles="fits_couplings"
    )

    # Machine
    accelerator: str = setting(
        "auto", "device to compute on", choices=("auto", "cpu", "gpu", "tpu"), roles=MACHINE
    )
    parallel: str = setting(
        "jit",
        "how several devices share a batch",
        choices=("jit", "shard_map", "pmap"),
        roles=MACHINE,
    )
    num_devices: int = setting(
        0, "devices of a process; 0: all; on CPU one, and more are simulated", low=0, roles=MACHINE
    )
    microbatch: int | str = setting(
        0,
        "images of a piece of a batch, over all devices; pieces are computed one after another, in "
        "less memory, to the same gradient. 0: whole batches. auto: the largest that memory holds",
        choices=("auto",),
        low=0,
        roles=MACHINE,
    )

    # Output
    workdir: str = setting("", "folder of the run; by default under runs/", roles="free path")
    diagnostics: bool = setting(
        False,
        "measure and plot routing: entropy, change of logits, dead capsules",
        roles="capsules free neutral",
    )
    profile: int = setting(
        0,
        "number of steps to trace after the first --log_every ones, for TensorBoard or Perfetto; "
        "the trace is written to the folder of the run",
        low=0,
        roles="free neutral",
    )
    validate_every: int = setting(
        0, "number of steps between validations and checkpoints; 0: an epoch", low=0, roles="free"
    )
    log_every: int = setting(
        10, "steps between two lines of metrics.jsonl", low=1, roles="free neutral"
    )

    def identity(self) -> dict:
        """Returns the fields that two runs must share to be the same run."""
        whole_run = RATE_SCHEDULES[self.schedule] or self.loss == "spread"  # whose margin grows
        free = set(names_of(self, "free")) - ({"epochs", "steps"} if whole_run else set())
        return {name: value for name, value in vars(self).items() if name not in free}

    def default_workdir(self) -> str:
        """Returns ``runs/NAME-...``, the same for the same (resolved) configuration."""
        later = later_defaults(self).items()
        named = sorted(pair for pair in self.identity().items() if pair not in later)
        code = zlib.crc32(repr(named).encode())
        return f"runs/{self.program}-{stem_of(self.dataset)}-{self.model}-{code:08x}"

    def folder(self) -> Path:
        """Returns the folder of the run: ``--workdir``, or else :meth:`default_workdir`."""
        return local_path(self.workdir or self.default_workdir(), "workdir")
