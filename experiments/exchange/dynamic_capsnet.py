"""CapsNets with dynamic routing in public code: gram-ai and XifengGuo (PyTorch, Keras).

All have a convolution, primary capsules, one routed layer and a decoder of three dense layers, as
Sabour et al. (2017). Their names, the order of their axes and what they do otherwise differ:

- gram-ai/capsule-networks (PyTorch): component k of all primary capsules is a convolution of its
  own, capsules are numbered by type and then position, W is ``[J, I, K, D]``, the softmax is over
  the input capsules, and scores are a softmax over the lengths.
- XifengGuo/CapsNet-Pytorch: primary capsules are a view of ``[B, C, H, W]``, so that a pose has
  neighbouring positions of a channel; W is ``[J, I, D, K]``.
- XifengGuo/CapsNet-Keras: channels last as here; W is ``[J, I, D, K]``.
"""

import numpy as np

from capsjax import Preprocessing
from capsjax.models import CapsNetConfig
from experiments.config import UserError
from experiments.exchange.mapping import (
    Arrays,
    Imported,
    dense_layers,
    float32,
    image_side,
)

POSE = 8  # K, in all of them
STRIDE = 2  # of the primary capsules


def gram_ai(arrays: Arrays, coupling: str, iterations: int) -> Imported:
    """Maps a state dictionary of gram-ai/capsule-networks."""
    conv = _conv(arrays, "conv1")
    kernels, biases = [], []
    for k in range(POSE):
        target = f"primary/conv, component {k} of all types"
        name = f"primary_capsules.capsules.{k}"
        channels = conv["kernel"].shape[3]
        kernels.append(_hwio(arrays.take(f"{name}.weight", target, (None, channels, None, None))))
        biases.append(arrays.take(f"{name}.bias", target, (kernels[0].shape[3],)))
    # Channel `type * K + k` here.
    kernel = np.stack(kernels, axis=-1)
    primary = {
        "kernel": kernel.reshape(*kernel.shape[:3], -1),
        "bias": np.stack(biases, -1).ravel(),
    }
    W = arrays.take("digit_capsules.route_weights", "classes/kernel", (None, None, POSE, None))
    types = kernels[0].shape[3]
    classes = {"kernel": _by_position(W, types, axis=1).transpose(1, 0, 3, 2)}
    prior = "digit_capsules.route_logits"
    if prior in arrays.left:
        logits = arrays.take(prior, "classes/prior", (W.shape[0], 1, W.shape[1], 1, 1))
        classes["prior"] = _by_position(logits[:, 0, :, 0, 0], types, axis=1).T
    decoder = _torch_decoder(arrays, inputs=W.shape[0] * W.shape[3], channels=1)
    notes = [
        "the softmax over the lengths, their last step: scores are the lengths, in the same order"
    ]
    if coupling == "outputs":
        notes.append(
            "the softmax of the couplings over the input capsules; --coupling=inputs takes theirs"
        )
    variables = {"conv": conv, "primary": {"conv": primary}, "classes": classes, "decoder": decoder}
    return _imported(arrays, variables, types, notes, coupling, iterations)


def xifeng_guo(arrays: Arrays, coupling: str, iterations: int) -> Imported:
    """Maps a state dictionary of XifengGuo/CapsNet-Pytorch, or the weights of CapsNet-Keras."""
    if "primarycaps.conv2d.weight" not in arrays.left:
        return _keras(arrays, coupling, iterations)
    conv = _conv(arrays, "conv1")
    primary = _conv(arrays, "primarycaps.conv2d", "primary/conv")
    W = arrays.take("digitcaps.weight", "classes/kernel", (None, None, None, POSE))
    channels = conv["kernel"].shape[2]
    decoder = _torch_decoder(arrays, inputs=W.shape[0] * W.shape[2], channels=channels)
    types = primary["bias"].size // POSE
    classes = {"kernel": W.transpose(1, 0, 2, 3)}
    variables = {"conv": conv, "primary": {"conv": primary}, "classes": classes, "decoder": decoder}
    notes = ["1e-8, which their squash adds to lengths"]
    return _imported(arrays, variables, types, notes, coupling, iterations, grouping="positions")


def _keras(arrays, coupling, iterations) -> Imported:
    conv, primary = (
        {part: arrays.take(name, f"{target}/{part}") for part, name in _parts(arrays, layer)}
        for layer, target in (("conv1", "conv"), ("primarycap_conv2d", "primary/conv"))
    )
    name = arrays.names("digitcaps.W") or ["digitcaps.W"]
    W = arrays.take(name[0], "classes/kernel", (None, None, None, POSE))
    kernels, biases = [], []
    for n, kernel in enumerate(arrays.names(".kernel")):
        kernels.append(arrays.take(kernel, f"decoder/layers/{n}/kernel", (None, None)))
        bias = kernel.removesuffix("kernel") + "bias"
        biases.append(arrays.take(bias, f"decoder/layers/{n}/bias", kernels[-1].shape[1:]))
    variables = {
        "conv": conv,
        "primary": {"conv": primary},
        "classes": {"kernel": W.transpose(1, 0, 2, 3)},
        "decoder": dense_layers(kernels, biases),
    }
    notes = ["1e-7, which their squash and lengths add to squares"]
    types = primary["bias"].size // POSE
    return _imported(arrays, variables, types, notes, coupling, iterations)


def _parts(arrays, layer):
    """Yields the names of kernel and bias of a layer of Keras, which repeats the layer's name."""
    for part in ("kernel", "bias"):
        names = arrays.names(f"{layer}.{part}") or [f"{layer}.{part}"]
        yield part, names[0]


def _conv(arrays: Arrays, name: str, target: str = "conv") -> dict:
    kernel = _hwio(arrays.take(f"{name}.weight", f"{target}/kernel", (None,) * 4))
    bias = arrays.take(f"{name}.bias", f"{target}/bias", kernel.shape[3:])
    return {"kernel": kernel, "bias": bias}


def _hwio(kernel: np.ndarray) -> np.ndarray:
    """Returns a kernel ``[O, C, H, W]`` of PyTorch as ``[H, W, C, O]``."""
    return kernel.transpose(2, 3, 1, 0)


def _by_position(x: np.ndarray, types: int, axis: int) -> np.ndarray:
    """Returns an axis of I capsules, by type and then position, by position and then type."""
    shape = (*x.shape[:axis], types, -1, *x.shape[axis + 1 :])
    return x.reshape(shape).swapaxes(axis, axis + 1).reshape(x.shape)


def _torch_decoder(arrays: Arrays, inputs: int, channels: int) -> dict:
    """Returns the dense layers of ``nn.Sequential``; the image is ``[C, H, W]`` there."""
    kernels, biases = [], []
    for n, place in enumerate((0, 2, 4)):
        weight = arrays.take(f"decoder.{place}.weight", f"decoder/layers/{n}/kernel", (None, None))
        kernels.append(weight.T)
        target = f"decoder/layers/{n}/bias"
        biases.append(arrays.take(f"decoder.{place}.bias", target, weight.shape[:1]))
    if kernels[0].shape[0] != inputs:
        # A decoder of the pose of the chosen class alone: the same for every class.
        if inputs % kernels[0].shape[0]:
            raise UserError(f"{arrays.flag}: the decoder takes {len(kernels[0])}, not {inputs}")
        kernels[0] = np.tile(kernels[0], (inputs // kernels[0].shape[0], 1))
    side = image_side(arrays, biases[2].size, channels)
    kernels[2], biases[2] = (
        x.reshape(-1, channels, side * side).swapaxes(1, 2).reshape(x.shape)
        for x in (kernels[2], biases[2])
    )
    return dense_layers(kernels, biases)


def _imported(arrays, variables, types, notes, coupling, iterations, grouping="channels"):
    """Returns the network whose sizes are those of the arrays."""
    I, J, D, K = variables["classes"]["kernel"].shape
    kernel, primary = variables["conv"]["kernel"], variables["primary"]["conv"]["kernel"]
    *hidden, last = (layer["bias"].size for layer in variables["decoder"]["layers"].values())
    channels = kernel.shape[2]
    side = image_side(arrays, last, channels)
    try:
        config = CapsNetConfig(
            image_shape=(side, side, channels),
            num_classes=J,
            conv_channels=kernel.shape[3],
            conv_kernel=kernel.shape[0],
            primary_types=types,
            primary_pose=K,
            primary_kernel=primary.shape[0],
            primary_stride=STRIDE,
            primary_grouping=grouping,
            class_pose=D,
            routing_iterations=iterations,
            routing_over=coupling,
            routing_prior="learned" if "prior" in variables["classes"] else "zeros",
            decoder=tuple(hidden),
            # Initial weights without a factor on the sum of the votes, which their layers lack.
            init="efficient",
        )
    except ValueError as error:
        raise UserError(f"{arrays.flag}: {error}") from error
    if config.input_capsules != I:
        raise UserError(
            f"{arrays.flag}: W has {I} input capsules, and {side}x{side} pixels give "
            f"{config.input_capsules}"
        )
    notes += arrays.leftovers()
    return Imported(
        config, float32(variables), Preprocessing(config.image_shape), arrays.lines, notes
    )
