"""What every training program can be told, and what that means: network, command, identity."""

import dataclasses
import zlib
from pathlib import Path

from capsjax.losses import LOSSES
from capsjax.models import PRESETS, CapsNetConfig, preset
from capsjax.models import Config as ModelConfig
from capsjax.models.capsnet_config import POSE_NORMS, SCHEDULES
from capsjax.routing import GRADIENTS, ROUTINGS, Sweeps, make, options_of
from capsjax.squash import SQUASHES
from capsjax.train import RECIPES
from capsjax.votes import VOTES
from experiments import programs
from experiments.errors import UserError
from experiments.settings import setting
from kernels.api import IMPLEMENTATIONS

PRESET_NAMES = tuple(dict.fromkeys(name.split("_", 1)[1] for name in PRESETS))
# Flags without a default of their own.
OF_PRESET = ("routing", "routing_iterations", "votes", "squash")
# Flags that mean nothing to a network without capsules.
OF_CAPSULES = (*OF_PRESET, "routing_prior", "routing_schedule", "frozen_from", "primary_types")
OF_CAPSULES += ("pose_norm", "primary_pose", "class_pose", "depth", "loss", "diagnostics")


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
    data_dir: str = setting("", "prepared TensorFlow Datasets directory", free=True)
    cache_dir: str = setting(
        "",
        "decoded data sets and compiled programs; the user's cache folder by default, "
        "'none' to keep no compiled programs",
        free=True,
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
    )
    routing_iterations: int | None = setting(
        None, "routing iterations, of algorithms that iterate", low=1, high=1000, by="preset"
    )
    routing_prior: str = setting("zeros", "first logits of routing", choices=("zeros", "learned"))
    routing_schedule: str = setting(
        "sequential", "concurrent: all capsule layers in every iteration", choices=SCHEDULES
    )
    routing_gradient: str = setting("full", "what is differentiated in routing", choices=GRADIENTS)
    routing_implementation: str = setting(
        "auto",
        "how routing is computed. naive: votes in memory. stream: tile by tile. pallas: kernels "
        "for TPU and NVIDIA GPU. auto: the best that runs. pallas_interpret: for tests",
        choices=IMPLEMENTATIONS,
    )
    frozen_from: str = setting(
        "",
        "folder of a finished --routing=dynamic run whose mean couplings --routing=frozen takes; "
        "by default where the same command with --routing=dynamic keeps it",
    )
    votes: str | None = setting(
        None, "how capsules vote for classes", choices=tuple(VOTES), by="preset"
    )
    squash: str | None = setting(
        None,
        "squash of capsules. auto: paper, for primary ones none where the routing's paper has none",
        choices=("auto", *SQUASHES),
        by="preset",
    )
    pose_norm: str = setting(
        "auto",
        "of poses between routed layers. auto: by their root mean square, where they are means of "
        "votes. none: never",
        choices=POSE_NORMS,
    )
    primary_types: int = setting(0, "types of primary capsules; 0: the preset's", low=0)
    primary_pose: int = setting(0, "pose size of primary capsules; 0: the preset's", low=0)
    class_pose: int = setting(
        0, "pose size of later capsules; 0: the preset's, or what the votes demand", low=0
    )
    depth: int = setting(
        0, "routed capsule layers of --preset=deep or matrix; 0: all of the preset's", low=0
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
        None, "weight of the loss of class scores", low=0.0, by="recipe"
    )
    learning_rate_floor: float | None = setting(
        None, "smallest learning rate", low=0.0, by="recipe"
    )

    # Training
    loss: str = setting(
        "auto", "of the class scores. auto: the routing's own", choices=("auto", *LOSSES)
    )
    epochs: int = setting(
        0, "passes over the training data; 0: 10 for digits, else 50", low=0, free=True
    )
    steps: int = setting(0, "training steps instead of epochs", low=0, free=True)
    batch_size: int = setting(
        0, "images a step, over all devices; 0: 64 for digits, else 128", low=0
    )
    learning_rate: float = setting(1e-3, "Adam's first learning rate", low=0.0)
    decay_rate: float = setting(0.96, "the learning rate is multiplied by this", low=0.0, high=1.0)
    decay_steps: int = setting(2000, "once every so many steps (continuously)", low=1)
    reconstruction_weight: float = setting(
        0.0005, "weight of the summed squared reconstruction error", low=0.0
    )
    seed: int = setting(0, "of everything random", low=0, high=2**32 - 1)

    # Machine
    accelerator: str = setting(
        "auto", "where to compute", choices=("auto", "cpu", "gpu", "tpu"), free=True
    )
    parallel: str = setting(
        "jit", "how devices share a batch", choices=("jit", "shard_map", "pmap"), free=True
    )
    num_devices: int = setting(
        0, "devices to use; 0: all (on CPU one; more are simulated)", low=0, free=True
    )

    # Output
    workdir: str = setting("", "where the run is kept; by default under runs/", free=True)
    diagnostics: bool = setting(
        False, "measure and draw routing: entropy, change of logits, dead capsules", free=True
    )
    profile: int = setting(
        0,
        "after the first --log_every steps trace so many, for TensorBoard or Perfetto, into the "
        "run's folder",
        low=0,
        free=True,
    )
    validate_every: int = setting(
        0, "validate and save after so many steps; 0: after each epoch", low=0, free=True
    )
    log_every: int = setting(10, "steps between two lines of metrics.jsonl", low=1, free=True)

    def resolved(self, dataset: str) -> "Config":
        """With every default that depends on the data set or the recipe filled in."""
        small = dataset == "digits"
        recipe = {
            name: value
            for name, value in RECIPES[self.recipe].items()
            if getattr(self, name) is None
        }
        network = PRESETS.get(f"{self.model}_{self.preset}")
        if isinstance(network, CapsNetConfig):
            own = {n: getattr(self, n) or v for n, v in of_preset(network, self.routing).items()}
            own["loss"] = make(own["routing"]).loss if self.loss == "auto" else self.loss
        else:
            own = {}
        return dataclasses.replace(
            self,
            dataset=dataset,
            epochs=self.epochs or (10 if small else 50),
            batch_size=self.batch_size or (64 if small else 128),
            **recipe,
            **own,
        )

    def identity(self) -> dict:
        """The fields that two runs must share to be the same run."""
        return {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if not f.metadata.get("free")
        }

    def default_workdir(self) -> str:
        """``runs/NAME-...``: the same for the same (resolved) configuration."""
        code = zlib.crc32(repr(sorted(self.identity().items())).encode())
        dataset = Path(self.dataset).stem if self.dataset.endswith(".npz") else self.dataset
        return f"runs/{self.program}-{dataset}-{self.model}-{code:08x}"

    def command(self, defaults: "Config | None" = None) -> str:
        """The command that gives this run on any machine, given its program's defaults."""
        defaults = defaults or programs.find(self.program).defaults
        given = self.given(defaults)
        return " ".join(
            [f"python -m experiments.{self.program}", *(f"--{k}={v}" for k, v in given.items())]
        )

    def given(self, defaults: "Config") -> dict:
        """The fields that differ from a program's defaults, its recipe's and its preset's.

        Those that say where things are on this machine are left out.
        """
        local = ("data_dir", "cache_dir", "workdir", "affnist_dir", "compare")
        recipe = RECIPES[self.recipe]
        network = PRESETS.get(f"{self.model}_{self.preset}")
        if isinstance(network, CapsNetConfig):
            recipe = recipe | of_preset(network, self.routing)
        if self.routing:
            recipe["loss"] = make(self.routing).loss
        return {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in local
            and getattr(self, f.name) not in (getattr(defaults, f.name), recipe.get(f.name))
        }

    def model_config(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        routing_implementation: str | Sweeps = "auto",
    ) -> ModelConfig:
        """The network of a (resolved) configuration.

        Args:
          image_shape, num_classes: of the data set.
          routing_implementation: what the flag of that name means on the devices of the run.

        Raises:
          UserError: there is no such network, or the images are too small for it.
        """
        network = PRESETS.get(f"{self.model}_{self.preset}")
        if network is None:
            raise UserError(f"--preset={self.preset}: there is no such --model={self.model}")
        if not isinstance(network, CapsNetConfig):
            defaults = type(self)()
            given = [n for n in OF_CAPSULES if getattr(self, n) != getattr(defaults, n)]
            if given:
                raise UserError(f"--{given[0]} is of capsules, and --model={self.model} has none")
        changes = {
            "image_shape": tuple(image_shape),
            "num_classes": num_classes,
            "dtype": self.dtype,
        }
        if self.model == "capsnet":
            changes |= {
                "routing": self.routing,
                "routing_iterations": self.routing_iterations,
                "routing_prior": self.routing_prior,
                "routing_schedule": self.routing_schedule,
                "votes": self.votes,
                "squash": self.squash,
                "pose_norm": self.pose_norm,
                **self._sizes(network),
                "routing_gradient": self.routing_gradient,
                "routing_implementation": routing_implementation,
                "init": self.init,
                "routing_bias": self.routing_bias,
                "primary_scale": self.primary_scale,
            }
            if not self.reconstruction:
                changes["decoder"] = None
        try:
            return preset(f"{self.model}_{self.preset}", **changes)
        except ValueError as error:
            where = f"--dataset={self.dataset}: " if str(error).startswith("image_shape") else ""
            what = " (--primary_pose, --class_pose)" if "pose" in str(error) else ""
            raise UserError(f"{where}{error}{what}") from error

    def _sizes(self, network: CapsNetConfig) -> dict:
        """Fields of the network that differ from those of the preset."""
        if self.routing_prior != "zeros" and "prior" not in options_of(self.routing):
            raise UserError(f"--routing_prior={self.routing_prior}: {self.routing} has no prior")
        if self.diagnostics and self.routing_schedule != "sequential":
            raise UserError("--diagnostics goes with --routing_schedule=sequential")
        if self.frozen_from and self.routing != "frozen":
            raise UserError("--frozen_from goes with --routing=frozen")
        sizes = {
            name: getattr(self, name)
            for name in ("primary_types", "primary_pose", "class_pose")
            if getattr(self, name)
        }
        if self.depth:
            layers = network.capsule_layers
            if self.depth > len(layers) + 1:
                raise UserError(
                    f"--depth={self.depth}: --preset={self.preset} has {len(layers) + 1} "
                    "routed capsule layers"
                )
            sizes["capsule_layers"] = layers[: self.depth - 1]
        keeps = self.votes in ("matrix", "conv_matrix", "elementwise")
        deep = sizes.get("capsule_layers", network.capsule_layers)
        if keeps and not self.class_pose and not deep:
            sizes["class_pose"] = sizes.get("primary_pose", network.primary_pose)
        return sizes


def of_preset(network: CapsNetConfig, routing: str | None) -> dict:
    """What a preset says where nothing is given; its squash is not for poses taken as they are."""
    own = {name: getattr(network, name) for name in OF_PRESET}
    if not make(routing or network.routing).squashes:
        own["squash"] = "auto"
    return own
