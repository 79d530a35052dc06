"""The configuration of a CapsNet: its sizes and choices, checked for consistency."""

import dataclasses

from capsjax.models.consistency import check_consistency
from capsjax.models.windows import COORDINATES, Window
from capsjax.plain_layers import PADDINGS
from capsjax.primary_capsules import ACTIVATIONS, GROUPINGS
from capsjax.recipes import primary_factor
from capsjax.routing import (
    GRADIENTS,
    CapsuleShards,
    PassKernels,
    Routing,
    check_choice,
    make_routing,
    options_of,
)
from capsjax.routing.dynamic import OVER
from capsjax.routing.em import CONSTANTS
from capsjax.squash import SQUASHES
from capsjax.votes import VOTES

SCHEDULES = ("sequential", "concurrent")
POSE_NORMS = ("auto", "none", "batch")
INITS = ("lecun", "official", "efficient", "hinton", "gritzman", "vb")
NORMS = ("none", "layer", "batch", "instance", "group")
INPUT_NORMS = ("none", "batch", "image")
DECODERS = ("dense", "transposed")


@dataclasses.dataclass(frozen=True)
class CapsNetConfig:
    """The CapsNet of Sabour, Frosst & Hinton (2017), section 4, and its later variants.

    The defaults are the paper's network for MNIST. ``init``, ``routing_bias`` and
    ``primary_scale`` are differences between the text and the authors' code, see
    :mod:`capsjax.recipes`. An option that the routing does not have (see
    :func:`capsjax.routing.options_of`) is ignored.

    Raises:
      ValueError: a name is unknown, or sizes do not fit each other.
    """

    image_shape: tuple[int, int, int] = (28, 28, 1)  # height, width, channels
    num_classes: int = 10  # J
    conv_channels: int = 256
    conv_kernel: int = 9
    conv_stride: int = 1
    more_convs: tuple[tuple[int, int, int], ...] = ()  # channels, kernel, stride
    padding: str = "VALID"  # of convolutions and primary capsules, or SAME
    conv_bias: bool = True
    # Residual blocks after the convolutions: channels, blocks and stride of each stage.
    trunk: tuple[tuple[int, int, int], ...] = ()
    # Of the images. image: each to mean zero and variance one; batch: over the batch, by channel,
    # without scale and offset.
    input_norm: str = "none"
    # Normalization of each convolution: layer (over a whole example), batch, instance or group,
    # see capsjax.normalization.
    conv_norm: str = "none"
    norm_place: str = "before"  # the activation of the convolution, or after it
    norm_momentum: float = 0.99  # of running statistics, see capsjax.BatchNorm
    norm_epsilon: float = 1e-3
    conv_slope: float = 0.0  # of the activation for negative numbers: ReLU, or a leaky one
    primary_types: int = 32
    primary_pose: int = 8  # K
    primary_kernel: int = 9
    primary_stride: int = 2
    primary_depthwise: bool = False  # each output channel has one input channel
    # length of the pose, or sigmoid of a convolution; auto: as in the paper of the routing
    primary_activation: str = "auto"
    primary_offset: float = 0.0  # added to the argument of the sigmoid
    primary_bias: bool = True  # of its convolutions
    primary_norm: str = "none"  # of poses and arguments of the sigmoid, by type; or batch
    # What makes up a pose: channels at a position, or positions; see capsjax.PrimaryCapsules.
    primary_grouping: str = "channels"
    # Positions of the input capsules in their votes for class capsules, a key of COORDINATES.
    coordinates: str = "none"
    # Convolutional capsule layers between primary and class capsules: types, kernel, stride.
    # Their pose size is that of the class capsules.
    capsule_layers: tuple[tuple[int, int, int], ...] = ()
    layer_votes: str = "full"  # of those layers
    # Normalization of poses between routed layers. auto: division by their root mean square over
    # the layer, for each example, if they are means of votes (em, vb, self, kde); none: never.
    # batch: those of each type, of class capsules too, over the batch, without scale and offset,
    # and so the arguments of the sigmoid that gives their activations (vb alone).
    pose_norm: str = "auto"
    class_pose: int = 16  # D
    votes: str = "full"  # of the class capsules
    squash: str = "auto"  # a key of SQUASHES; auto: as in the paper of the routing
    routing: str = "dynamic"  # a key of capsjax.routing.ROUTINGS
    em_constants: str = "default"  # of EM routing, see capsjax.routing.em
    routing_iterations: int = 3  # R
    routing_prior: str = "zeros"  # or learned
    routing_over: str = "outputs"  # what couplings sum to one over, see capsjax.routing.dynamic
    routing_schedule: str = "sequential"  # or concurrent: all layers in every pass
    routing_gradient: str = "full"  # full, stop or last
    # auto, naive, stream or other pass kernels: how, not what, is computed
    routing_implementation: str | PassKernels | CapsuleShards = "auto"
    decoder: tuple[int, ...] | None = (512, 1024)  # hidden widths; None: no reconstruction
    # dense layers, or transposed convolutions, whose numbers of channels are then the widths
    decoder_kind: str = "dense"
    # Initial weights, those of authors' code: see KERNELS in capsjax.models.initial_weights.
    init: str = "lecun"
    routing_bias: bool = False  # learned bias of s_j, initially 0.1
    # Factor on the weighted sums of the primary capsules, or official: their share of types.
    primary_scale: float | str = 1.0
    dtype: str = "float32"  # of convolutions, votes and decoder products

    def __post_init__(self):
        check_choice("padding", self.padding, PADDINGS)
        check_choice("decoder_kind", self.decoder_kind, DECODERS)
        check_choice("conv_norm", self.conv_norm, NORMS)
        check_choice("input_norm", self.input_norm, INPUT_NORMS)
        check_choice("primary_norm", self.primary_norm, ("none", "batch"))
        check_choice("coordinates", self.coordinates, COORDINATES)
        check_choice("norm_place", self.norm_place, ("before", "after"))
        check_choice("init", self.init, INITS)
        check_choice("routing_schedule", self.routing_schedule, SCHEDULES)
        check_choice("squash", self.squash, ("auto", *SQUASHES))
        check_choice("votes", self.votes, VOTES)
        check_choice("layer_votes", self.layer_votes, VOTES)
        check_choice("pose_norm", self.pose_norm, POSE_NORMS)
        check_choice("primary_grouping", self.primary_grouping, GROUPINGS)
        check_choice("routing_over", self.routing_over, OVER)
        routing = self.make_routing()
        check_choice("routing_gradient", self.routing_gradient, GRADIENTS)
        check_choice("primary_activation", self.primary_activation, ("auto", *ACTIVATIONS))
        _ = self.primary_factor
        check_consistency(self, routing)

    def make_routing(self, *, classes: bool = True) -> Routing:
        """Make the routing algorithm, with those of the options that it has.

        Args:
          classes: whether it is that of the class capsules.
        """
        constants = f"{self.em_constants}_classes"
        options = {
            "iterations": self.routing_iterations,
            "prior": self.routing_prior,
            "over": self.routing_over,
            "bias": self.routing_bias,
            "constants": constants if classes and constants in CONSTANTS else self.em_constants,
            "standardized": self.pose_norm != "batch",
        }
        if self.squash != "auto":
            options["squash"] = self.squash
        known = options_of(self.routing)
        return make_routing(self.routing, **{k: v for k, v in options.items() if k in known})

    @property
    def primary_factor(self) -> float:
        """The number that ``primary_scale`` means, see :func:`capsjax.recipes.primary_factor`."""
        leaky = self.make_routing().normalizer == "leaky"
        return primary_factor(self.primary_scale, types=self.primary_types, leaky=leaky)

    @property
    def primary_squash(self) -> str:
        """The name of the squash of the primary capsules."""
        if self.squash != "auto":
            return self.squash
        return self.make_routing().traits.primary_squash

    @property
    def presence(self) -> str:
        """What the activations of the primary capsules are: length or sigmoid."""
        if self.primary_activation != "auto":
            return self.primary_activation
        return self.make_routing().traits.primary_activation

    @property
    def convs(self) -> tuple[tuple[int, int, int], ...]:
        """The channels, kernel and stride of each convolution before the primary capsules."""
        return ((self.conv_channels, self.conv_kernel, self.conv_stride), *self.more_convs)

    @property
    def primary_channels(self) -> int:
        """The number of channels that primary capsules are computed from."""
        return self.trunk[-1][0] if self.trunk else self.convs[-1][0]

    @property
    def primary_grid(self) -> tuple[int, int]:
        """The height and width of the grid of primary capsules."""
        return self._grid(self.windows[: len(self.convs) + len(self.trunk) + 1])

    @property
    def input_capsules(self) -> int:
        """The number I of primary capsules."""
        height, width = self.primary_grid
        return height * width * self.primary_types

    @property
    def class_inputs(self) -> tuple[int, int]:
        """The number of capsules below the class capsules, and of their types."""
        height, width = self._grid(self.windows)
        types = self.capsule_layers[-1][0] if self.capsule_layers else self.primary_types
        return height * width * types, types

    def _grid(self, windows: list[Window]) -> tuple[int, int]:
        """The height and width that windows, lowest first, make of an image."""
        height, width = self.image_shape[:2]
        for kernel, stride, padded in windows:
            lost = 0 if padded else kernel - 1
            height, width = (-(-(n - lost) // stride) for n in (height, width))
        return height, width

    @property
    def windows(self) -> list[Window]:
        """The windows of all layers that slide one over their input, lowest first.

        A stage of the trunk has one, with its stride.
        """
        same = self.padding == "SAME"
        return [
            *(Window(kernel, stride, same) for _, kernel, stride in self.convs),
            *(Window(3, stride, True) for _, _, stride in self.trunk),
            Window(self.primary_kernel, self.primary_stride, same),
            *(Window(kernel, stride, False) for _, kernel, stride in self.capsule_layers),
        ]
