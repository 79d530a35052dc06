"""The weights of EscVM/Efficient-CapsNet, as Keras saves them.

Layers are named by Keras and numbered in the order in which a process made them, so they are told
by what they hold: kernels of four dimensions are the convolutions, the last of them depthwise; W
and b are those of the class capsules; kernels of two dimensions are the decoder.
"""

import dataclasses

from capsjax import Preprocessing, Variables
from capsjax.models import CapsNetConfig, preset
from experiments.config import UserError
from experiments.exchange.mapping import Arrays, Imported, dense_layers, float32

# By the channels of the image and the side of the last kernel.
PRESETS = {
    (1, 9): "capsnet_efficient",
    (1, 5): "capsnet_efficient_multimnist",
    (2, 8): "capsnet_efficient_smallnorb",
}
# What their code does to images, as far as steps of one image express it.
STEPS = {
    "capsnet_efficient_smallnorb": (
        ("unit",),
        ("resize", 64),
        ("crop", 48),
        ("standardize_channels",),
    )
}
SHAPES = {"capsnet_efficient_smallnorb": (96, 96, 2)}


def efficient_capsnet(arrays: Arrays, coupling: str, iterations: int) -> Imported:
    """Maps the weights of a network for MNIST, MultiMNIST or smallNORB.

    Args:
      arrays: of the file.
      coupling, iterations: of dynamic routing, which these networks do not have.
    """
    kernels = [n for n in arrays.names(".kernel") if arrays.left[n].ndim == 4]
    if len(kernels) != 5:
        raise UserError(f"{arrays.flag}: {len(kernels)} convolutions, not the 5 of these networks")
    sides = arrays.left[kernels[0]].shape[2], arrays.left[kernels[-1]].shape[0]
    if sides not in PRESETS:
        raise UserError(
            f"{arrays.flag}: {sides[0]} channels and a last kernel of {sides[1]} pixels are none "
            "of the networks for MNIST, MultiMNIST and smallNORB"
        )
    name = PRESETS[sides]
    config = preset(name)
    targets = ["conv", *(f"more_convs/{n}" for n in range(3)), "primary/conv"]
    layers = [_conv(arrays, *pair) for pair in zip(kernels, targets, strict=True)]
    scales, state = _norms(arrays, config, [layer["bias"].size for layer in layers[:4]])
    params = {
        "conv": layers[0],
        "more_convs": {str(n): layer for n, layer in enumerate(layers[1:4])},
        "norms": scales,
        "primary": {"conv": layers[4]},
        "classes": _classes(arrays, config),
    }
    dense = [n for n in arrays.names(".kernel") if arrays.left[n].ndim == 2]
    notes = ["1e-7, which they add to the squares of lengths: scores are the lengths"]
    if len(dense) == 3 and config.decoder is not None:
        params["decoder"] = _decoder(arrays, dense)
    else:
        config = dataclasses.replace(config, decoder=None)
        notes.append("a decoder: the file has none that this network has")
    if name in STEPS:
        notes.append(
            "the standardization of cameras over the whole data set: each image is standardized"
        )
    notes += arrays.leftovers()
    variables = float32(params)
    if state:
        variables = Variables(variables, float32({"norms": state}))
    shape = SHAPES.get(name, config.image_shape)
    steps = STEPS.get(name, (("unit",),))
    return Imported(config, variables, Preprocessing(shape, steps), arrays.lines, notes)


def _conv(arrays: Arrays, name: str, target: str) -> dict:
    kernel = arrays.take(name, f"{target}/kernel")
    bias = name.removesuffix("kernel") + "bias"
    return {"kernel": kernel, "bias": arrays.take(bias, f"{target}/bias", kernel.shape[3:])}


def _norms(arrays: Arrays, config: CapsNetConfig, widths: list[int]) -> tuple[dict, dict]:
    """Returns scales and offsets of the four normalizations, and their statistics if any."""
    scales, state = {}, {}
    names = arrays.names(".gamma")
    if len(names) != len(widths):
        raise UserError(f"{arrays.flag}: {len(names)} normalizations, not {len(widths)}")
    for n, (name, width) in enumerate(zip(names, widths)):
        layer, target = name.removesuffix(".gamma"), f"norms/{n}"
        scales[str(n)] = {
            "scale": arrays.take(name, f"{target}/scale", (width,)),
            "bias": arrays.take(f"{layer}.beta", f"{target}/bias", (width,)),
        }
        if config.conv_norm == "batch":
            state[str(n)] = {
                "mean": arrays.take(f"{layer}.moving_mean", f"state {target}/mean", (width,)),
                "var": arrays.take(f"{layer}.moving_variance", f"state {target}/var", (width,)),
            }
    return scales, state


def _classes(arrays: Arrays, config: CapsNetConfig) -> dict:
    """Returns W ``[J, I, K, D]`` and b ``[J, I, 1]`` of the class capsules."""
    names = {part: (arrays.names(f".{part}") or [f"digit_caps.{part}"])[0] for part in "Wb"}
    J, I, K, D = config.num_classes, config.input_capsules, config.primary_pose, config.class_pose
    W = arrays.take(names["W"], "classes/kernel", (J, I, K, D))
    b = arrays.take(names["b"], "classes/beta", (J, I, 1))
    return {"kernel": W.transpose(1, 0, 3, 2), "beta": b[:, :, 0].T}


def _decoder(arrays: Arrays, names: list[str]) -> dict:
    kernels, biases = [], []
    for n, name in enumerate(names):
        kernels.append(arrays.take(name, f"decoder/layers/{n}/kernel", (None, None)))
        bias = name.removesuffix("kernel") + "bias"
        biases.append(arrays.take(bias, f"decoder/layers/{n}/bias", kernels[-1].shape[1:]))
    return dense_layers(kernels, biases)
