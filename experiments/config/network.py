"""What a configuration says about the network: defaults that depend on it, and its sizes."""

import dataclasses
import shlex
from collections.abc import Sequence

from capsjax.models import PRESETS, CapsNetConfig, fit_image, preset
from capsjax.models import Config as ModelConfig
from capsjax.recipes import RECIPES
from capsjax.routing import PassKernels, make_routing, options_of
from experiments import UserError
from experiments.config.experiment import Config
from experiments.config.flags import names_of
from experiments.config.optimization import check_optimization

NORMALIZING = ("standardize", "standardize_channels")  # steps that leave mean zero, variance one
IN_RECIPE = ("init", "routing_bias", "primary_scale")
# Fields of the configuration that are handed to the network as they are.
SAME_NAME = (
    "routing",
    "routing_iterations",
    "routing_prior",
    "routing_schedule",
    "routing_gradient",
    "votes",
    "squash",
    "pose_norm",
    *IN_RECIPE,
)


def resolve(config: Config, dataset: str) -> Config:
    """Fills in every default that depends on the data set, the recipe or the preset.

    Args:
      config: as the flags give it.
      dataset: name of the data set that was loaded.
    """
    small = dataset == "digits"
    changes = {
        name: value
        for name, value in RECIPES[config.recipe].items()
        if getattr(config, name) is None
    }
    network = PRESETS.get(f"{config.model}_{config.preset}")
    if isinstance(network, CapsNetConfig):
        for name, value in preset_values(network, config.routing).items():
            changes[name] = getattr(config, name) or value
        usual = make_routing(changes["routing"]).traits.loss
        changes["loss"] = usual if config.loss == "auto" else config.loss
    return dataclasses.replace(
        config,
        dataset=dataset,
        epochs=config.epochs or (10 if small else 50),
        batch_size=config.batch_size or (64 if small else 128),
        **changes,
    )


def choose_input_norm(config: Config, channels: int, steps: Sequence[tuple]) -> Config:
    """Fills in ``--input_norm``, which depends on the images.

    Pixels of photographs are all positive and alike, so that the first steps of Adam at 0.001 add
    up over the 20,736 inputs of a primary capsule and saturate it. The authors' code standardizes
    the images of CIFAR-10 and smallNORB, too.

    Args:
      config: resolved.
      channels: of the input of the network.
      steps: from an image to that input, as :class:`capsjax.Preprocessing` has them.

    Returns:
      The configuration with ``image`` where ``auto`` means that, and with ``auto`` in place of
      ``preset`` where both mean the same.
    """
    network = PRESETS.get(f"{config.model}_{config.preset}")
    plain = isinstance(network, CapsNetConfig) and network.input_norm == "none"
    normalized = any(name in NORMALIZING for name, *_ in steps)
    same = {"auto": "image"} if plain and channels >= 2 and not normalized else {"preset": "auto"}
    return dataclasses.replace(config, input_norm=same.get(config.input_norm, config.input_norm))


def preset_values(network: CapsNetConfig, routing: str | None) -> dict:
    """Returns what a preset says about the flags that have no default of their own.

    The squash of the preset does not apply to a routing that takes poses as they are. Initial
    weights are those of the recipe, unless the preset has some of its own. Normalization of poses
    and initial weights of matrix capsules are for the routing of the preset alone.
    """
    fields = dataclasses.fields(Config)
    values = {f.name: getattr(network, f.name) for f in fields if f.metadata.get("by") == "preset"}
    if not make_routing(routing or network.routing).traits.squash_primary:
        values["squash"] = "auto"
    other = routing not in (None, network.routing)
    matrices = make_routing(network.routing).traits.poses_are_means
    if other:
        values["pose_norm"] = CapsNetConfig.pose_norm
    if network.init != CapsNetConfig.init and not (other and matrices):
        values["init"] = network.init
    return values


def given_flags(config: Config, defaults: Config) -> dict:
    """Returns the fields that differ from the defaults of program, recipe and preset.

    Places on this machine are left out.
    """
    usual = dict(RECIPES[config.recipe])
    network = PRESETS.get(f"{config.model}_{config.preset}")
    if isinstance(network, CapsNetConfig):
        usual |= preset_values(network, config.routing)
    if config.routing:
        usual["loss"] = make_routing(config.routing).traits.loss
    paths = names_of(config, "path")
    return {
        name: value
        for name, value in vars(config).items()
        if name not in paths and value not in (getattr(defaults, name), usual.get(name))
    }


def command(config: Config, defaults: Config) -> str:
    """Returns the command that gives this run on any machine, given its program's defaults."""
    usual = {name: getattr(defaults, name) for name in names_of(config, "contents")}
    places = {name: "PATH" for name, value in usual.items() if getattr(config, name) != value}
    return _command(config, given_flags(config, defaults) | places)


def _command(config: Config, given: dict) -> str:
    words = [f"--{name}={value}" for name, value in given.items()]
    return shlex.join(["python", "-m", f"experiments.{config.program}", *words])


def continuation(config: Config, defaults: Config) -> str:
    """Returns the command that continues this run on this machine."""
    places = {n: getattr(config, n) for n in names_of(config, "path")}
    places = {n: v for n, v in places.items() if v != getattr(defaults, n)}
    return _command(config, given_flags(config, defaults) | places)


def network_config(
    config: Config,
    image_shape: tuple[int, int, int],
    num_classes: int,
    routing_implementation: str | PassKernels = "auto",
) -> ModelConfig:
    """Returns the network that a (resolved) configuration describes.

    Its kernels are smaller than those of the preset if the images are too small for them; see
    :func:`small_kernels`.

    Args:
      config: resolved.
      image_shape, num_classes: of the data set.
      routing_implementation: what the flag of that name means on the devices of the run.

    Raises:
      UserError: there is no such network, or its sizes do not fit each other.
    """
    name = f"{config.model}_{config.preset}"
    if name not in PRESETS:
        raise UserError(f"--model={config.model} has no --preset={config.preset}")
    check_optimization(config)
    network = PRESETS[name]
    changes = {"num_classes": num_classes, "dtype": config.dtype}
    if isinstance(network, CapsNetConfig):
        _check_flags_agree(config)
        changes |= {field: getattr(config, field) for field in SAME_NAME}
        changes |= _sizes(config, network)
        changes["routing_implementation"] = routing_implementation
        if config.input_norm not in ("auto", "preset"):
            changes["input_norm"] = config.input_norm
        if not config.reconstruction:
            changes["decoder"] = None
    else:
        usual = vars(type(config)()) | RECIPES[config.recipe]
        for field in (*names_of(config, "capsules"), *IN_RECIPE):
            if getattr(config, field) != usual[field]:
                raise UserError(
                    f"--{field} applies only to capsule networks, and --model={config.model} is "
                    "not one"
                    if config.model == "cnn"
                    else f"--{field} applies only to networks with routing, and "
                    f"--preset={config.preset} has none"
                )
    try:
        found = preset(name, **changes)
    except ValueError as error:
        what = " (--primary_pose, --class_pose)" if "pose" in str(error) else ""
        raise UserError(f"{error}{what}") from error
    if isinstance(found, CapsNetConfig):
        return fit_image(found, image_shape)
    try:
        return dataclasses.replace(found, image_shape=tuple(image_shape))
    except ValueError as error:
        raise UserError(f"--preset={config.preset}: {error}") from error


def small_kernels(config: Config, network: ModelConfig) -> str:
    """Returns in one line which kernels are smaller than those of the preset, or nothing."""
    if not isinstance(network, CapsNetConfig):
        return ""
    usual = PRESETS[f"{config.model}_{config.preset}"].windows[: len(network.windows)]
    if usual == network.windows:
        return ""
    before, after = (
        ", ".join(f"{w.kernel}x{w.kernel} by {w.stride}" for w in windows)
        for windows in (usual, network.windows)
    )
    height, width = network.image_shape[:2]
    return (
        f"--preset={config.preset} is for larger images than {height}x{width} pixels: its kernels "
        f"and strides {before} become {after}"
    )


def _check_flags_agree(config: Config) -> None:
    if config.routing_prior != "zeros" and "prior" not in options_of(config.routing):
        raise UserError(f"--routing_prior={config.routing_prior}: {config.routing} has no prior")
    if config.diagnostics and config.routing_schedule != "sequential":
        raise UserError("--diagnostics requires --routing_schedule=sequential")
    if config.frozen_from and config.routing != "frozen":
        raise UserError("--frozen_from requires --routing=frozen")


def _sizes(config: Config, network: CapsNetConfig) -> dict:
    """Sizes of the network that differ from those of the preset."""
    sizes = {
        name: getattr(config, name)
        for name in ("primary_types", "primary_pose", "class_pose")
        if getattr(config, name)
    }
    if config.depth:
        layers = network.capsule_layers
        if config.depth > len(layers) + 1:
            raise UserError(
                f"--depth={config.depth}: --preset={config.preset} has {len(layers) + 1} "
                "routed capsule layers"
            )
        sizes["capsule_layers"] = layers[: config.depth - 1]
    keeps_pose = config.votes in ("matrix", "conv_matrix", "elementwise")
    deep = sizes.get("capsule_layers", network.capsule_layers)
    if keeps_pose and not config.class_pose and not deep:
        sizes["class_pose"] = sizes.get("primary_pose", network.primary_pose)
    return sizes
