"""The paper's CapsNet in PyTorch, a baseline of speed; imported only where torch is installed.

It is written as PyTorch users would write it today: one convolution for all primary capsules, votes
by einsum, routing by agreement over [B, I, J], channels-last images, one Adam. It takes the
parameters of the network in capsjax, so that the benchmark can check that both compute the same.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from capsjax.models import CapsNetConfig


class CapsNet(nn.Module):
    """Dynamic routing with full votes, the paper's squash, margin loss and reconstruction.

    Args:
      config: of the network in capsjax.
      params: its parameters, as ``capsjax.create_model(config).init`` returns them.
    """

    def __init__(self, config: CapsNetConfig, params: dict):
        super().__init__()
        c = self.config = config
        types, pose = c.primary_types, c.primary_pose
        channels = c.image_shape[2]
        self.conv = nn.Conv2d(channels, c.conv_channels, c.conv_kernel, c.conv_stride)
        self.primary = nn.Conv2d(c.conv_channels, types * pose, c.primary_kernel, c.primary_stride)
        self.W = nn.Parameter(_tensor(params["classes"]["kernel"]))
        sizes = (c.num_classes * c.class_pose, *c.decoder, int(np.prod(c.image_shape)))
        self.decoder = nn.ModuleList(nn.Linear(m, n) for m, n in zip(sizes, sizes[1:]))
        with torch.no_grad():
            for layer, p in (
                (self.conv, params["conv"]),
                (self.primary, params["primary"]["conv"]),
            ):
                layer.weight.copy_(_tensor(p["kernel"]).permute(3, 2, 0, 1))
                layer.bias.copy_(_tensor(p["bias"]))
            for n, layer in enumerate(self.decoder):
                p = params["decoder"]["layers"][str(n)]
                layer.weight.copy_(_tensor(p["kernel"]).T)
                layer.bias.copy_(_tensor(p["bias"]))
        self.to(memory_format=torch.channels_last)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the class capsules ``[B, J, D]`` of images ``[B, C, H, W]``."""
        x = self.primary(F.relu(self.conv(images)))
        u = squash(x.permute(0, 2, 3, 1).reshape(len(x), -1, self.config.primary_pose))
        votes = torch.einsum("ijdk,bik->bijd", self.W, u)
        logits = votes.new_zeros(votes.shape[:3])
        for iteration in range(self.config.routing_iterations):
            coupling = logits.softmax(-1)
            v = squash(torch.einsum("bij,bijd->bjd", coupling, votes))
            if iteration + 1 < self.config.routing_iterations:
                logits = logits + torch.einsum("bijd,bjd->bij", votes, v)
        return v

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Returns the mean over the batch of margin and reconstruction loss."""
        v = self.encode(images)
        lengths = v.square().sum(-1).clamp_min(1e-12).sqrt()
        target = F.one_hot(labels, self.config.num_classes).to(v.dtype)
        margin = target * F.relu(0.9 - lengths).square()
        margin = margin + 0.5 * (1 - target) * F.relu(lengths - 0.1).square()
        x = (v * target[..., None]).flatten(1)
        for layer in self.decoder[:-1]:
            x = F.relu(layer(x))
        x = torch.sigmoid(self.decoder[-1](x))
        wrong = (x - images.permute(0, 2, 3, 1).flatten(1)).square().sum(-1)
        return (margin.sum(-1) + 0.0005 * wrong).mean()


def squash(s: torch.Tensor) -> torch.Tensor:
    """Applies Equation 1 of the paper along the last axis."""
    q = s.square().sum(-1, keepdim=True)
    return s * (q.clamp_min(1e-12).sqrt() / (1 + q))


def loss(model: CapsNet, images: np.ndarray, labels: np.ndarray) -> float:
    """Returns the loss of a batch of images ``[B, H, W, C]`` in [0, 1]."""
    with torch.no_grad():
        return model(*batch(images, labels, model.W.device)).item()


def functions(
    model: CapsNet, images: np.ndarray, labels: np.ndarray, compiled: bool
) -> tuple[Callable[[], int], Callable[[], int]]:
    """Returns two functions, which train on a batch and classify it, and return its size.

    Args:
      model: trained in place.
      images: ``[B, H, W, C]`` in [0, 1].
      labels: ``[B]``.
      compiled: use ``torch.compile``.
    """
    x, y = batch(images, labels, model.W.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss_of, encode = model, model.encode
    if compiled:
        loss_of, encode = torch.compile(model), torch.compile(model.encode)

    def wait():
        if x.is_cuda:
            torch.cuda.synchronize()

    def train():
        optimizer.zero_grad(set_to_none=True)
        loss_of(x, y).backward()
        optimizer.step()
        wait()
        return len(x)

    def infer():
        with torch.inference_mode():
            encode(x).square().sum(-1).sqrt()
        wait()
        return len(x)

    return train, infer


def batch(
    images: np.ndarray, labels: np.ndarray, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a batch as PyTorch has it: ``[B, C, H, W]``, channels last in memory."""
    x = _tensor(images).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    return x.to(device), torch.from_numpy(np.asarray(labels)).long().to(device)


def _tensor(x) -> torch.Tensor:
    return torch.from_numpy(np.array(x))
