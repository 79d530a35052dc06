"""Initial weights of the networks of the literature, by ``CapsNetConfig.init``."""

from typing import Any

from jax.nn import initializers as init

from capsjax.plain_layers import Initializer


def _glorot_of_types(kernel: int) -> Initializer:
    """Glorot's uniform distribution as in the authors' code of VB routing.

    Fan-in and fan-out of matrices ``[I, J, P, P]`` count the components of the poses of all types
    at all positions of a square of side ``kernel``. Other shapes get the usual distribution.
    """

    def draw(key, shape, dtype):
        if len(shape) != 4 or shape[2] != shape[3]:
            return init.glorot_uniform()(key, shape, dtype)
        (I, J, P, _), square = shape, kernel * kernel
        most = (6 / ((I + square * J) * P * P)) ** 0.5
        return init.uniform(2 * most)(key, shape, dtype) - most

    return draw


# Kernels of each kind of layer. Those of convolutional capsule layers (capsules) and of class
# capsules are functions of the side of the square that they see where they depend on it.
KERNELS: dict[str, dict[str, Any]] = {
    # Sabour, Frosst & Hinton (2017)
    "official": {
        "conv": init.truncated_normal(0.05),
        **dict.fromkeys(("primary", "classes", "decoder"), init.truncated_normal(0.1)),
    },
    # Mazzia, Salvetti & Chiaberge (2021). The fan-in of W [I, J, D, K], as Keras computes it, is
    # I J K.
    "efficient": {
        "conv": init.he_normal(),
        "primary": init.glorot_uniform(),
        "classes": init.he_normal(in_axis=-1, out_axis=-2),
        "decoder": init.he_normal(),
    },
    # Hinton, Sabour & Frosst (2018), their released code. TensorFlow cuts a normal distribution at
    # two deviations and does not make up for it.
    "hinton": {
        "conv": init.truncated_normal(0.05),
        "primary": init.truncated_normal(0.5),
        "present": init.truncated_normal(3.0),
        "capsules": init.truncated_normal(0.3),
        "classes": init.truncated_normal(0.01),
    },
    # Gritzman (2019)
    "gritzman": {
        "conv": init.glorot_uniform(),
        "primary": init.glorot_uniform(),
        **dict.fromkeys(("capsules", "classes"), init.truncated_normal(1.0)),
    },
    # Ribeiro, Leontidis & Kollias (2020)
    "vb": {
        "conv": init.he_uniform(),
        "primary": init.glorot_uniform(),
        **dict.fromkeys(("capsules", "classes"), _glorot_of_types),
    },
}
BIASES: dict[str, Initializer] = {
    "official": init.constant(0.1),
    "hinton": init.constant(0.1),
    "gritzman": init.truncated_normal(0.01),
}


def kernel_options(name: str, layer: str, kernel: int = 1) -> dict[str, Any]:
    """Return the initializer of the kernels of a layer as an argument, if ``name`` has one.

    Args:
      name: of ``CapsNetConfig.init``.
      layer: conv, primary, present (the activations of primary capsules), capsules, classes or
        decoder.
      kernel: the side of the square that capsules of the layer see.
    """
    found = KERNELS.get(name, {}).get(layer)
    if found is None:
        return {}
    return {"kernel_init": found(kernel) if found is _glorot_of_types else found}
