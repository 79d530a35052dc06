"""Networks and batches on which losses and steps are tested, and the losses in NumPy."""

import jax.numpy as jnp
import numpy as np
import reference

from capsjax import (
    CapsNetConfig,
    CNNConfig,
    Prediction,
)

CAPSNET = CapsNetConfig(
    image_shape=(7, 8, 1),
    num_classes=3,
    conv_channels=3,
    conv_kernel=3,
    primary_types=2,
    primary_pose=3,
    primary_kernel=3,
    primary_stride=2,
    class_pose=4,
    decoder=(5,),
    routing_bias=True,
)


CNN = CNNConfig((4, 5, 1), 3, channels=(2,), kernels=(3,), dense=(8,))


def batch(config, n, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.uniform(size=(n, *config.image_shape)).astype(np.float32)
    return images, rng.integers(0, config.num_classes, n).astype(np.int32)


def expected_loss(params, image, label, margin_weight=1.0, reconstruction_weight=0.0005):
    """Returns the paper's loss, its two terms, and the accuracy."""
    out = reference.capsnet(params, image, pose=3, stride=2, iterations=3, label=label)
    terms = {
        "margin_loss": reference.margin_loss(out.lengths, np.eye(len(out.lengths))[label]),
        "accuracy": np.argmax(np.real(out.lengths)) == label,
    }
    terms["loss"] = margin_weight * terms["margin_loss"]
    if out.reconstruction is not None:
        error = reference.reconstruction_loss(out.reconstruction, image)
        terms["reconstruction_loss"] = error
        terms["loss"] = terms["loss"] + reconstruction_weight * error
    return terms


class Scores:
    """A network whose scores are its parameters, the same for every image."""

    @staticmethod
    def apply(params, images, labels=None, key=None):
        return Prediction(jnp.broadcast_to(params[None], (images.shape[0], params.shape[0])))
